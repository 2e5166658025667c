"""Pipeline × scheduler: what runs with what, guided. With ``--full --write-docs`` it writes docs/support.md."""

import functools
import warnings

import diffusers
import pytest
from diffusers.utils import is_scipy_available, is_torchsde_available
from helpers.pipeline_zoo import built, mean_redness, redness, run
from helpers.support_page import COLUMNS, DIFFUSION, FLOW, PAGE, page

from clip_guidance.guidance import Guidance, UnsupportedSchedulerError

pytestmark = pytest.mark.skipif(
    not (is_scipy_available() and is_torchsde_available()), reason="two of the schedulers need scipy and torchsde"
)
#: One pipeline for each way to hand a prediction to the scheduler, and the schedulers for its kind of model.
ROWS = {
    **dict.fromkeys(
        [
            "StableDiffusionPipeline",
            "StableDiffusionXLPipeline",
            "KolorsPipeline",
            "Kandinsky3Pipeline",
            "IFPipeline",
            "LDMTextToImagePipeline",
            "PixArtAlphaPipeline",
            "HunyuanDiTPipeline",
            "DiTPipeline",
            "CogView3PlusPipeline",
        ],
        DIFFUSION,
    ),
    **dict.fromkeys(
        [
            "StableDiffusion3Pipeline",
            "FluxPipeline",
            "Flux2Pipeline",
            "SanaPipeline",
            "Lumina2Pipeline",
            "AuraFlowPipeline",
            "QwenImagePipeline",
            "ZImagePipeline",
            "CogView4Pipeline",
            "ChromaPipeline",
            "HiDreamImagePipeline",
            "OmniGenPipeline",
        ],
        FLOW,
    ),
}
#: The rows of the default run: a pipeline of each kind of model.
FAST = ("StableDiffusion3Pipeline",)


def outcome(key, name, config):
    """✓ if the pipeline is guided with another scheduler, ✗ if guidance refuses, — if diffusers does not run it so."""
    pipe, _ = built(key)
    own = pipe.scheduler
    settings = {"clip_sample": False, **config}
    pipe.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(own.config, **settings)
    try:
        try:
            plain = run(key)
        except Exception:
            return "—"
        if not plain.isfinite().all():
            return "—"
        # A random network in pixels saturates most of them: there it takes a stronger push to see any.
        for scale in (100.0, 10_000.0):
            with Guidance(redness, scale=scale).attach(pipe):
                guided = run(key)
            assert guided.isfinite().all(), f"{key} with {name} gave images that are not finite"
            if mean_redness(guided) > mean_redness(plain):
                return "✓"
    except UnsupportedSchedulerError:
        return "✗"
    finally:
        pipe.scheduler = own
    raise AssertionError(f"{key} with {name}: the reward did not rise from {mean_redness(plain):.4f}")


@functools.cache
def row(key):
    """{scheduler: outcome} of one pipeline, in the order of the page."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers, about settings that one scheduler takes and another does not
        return {name: outcome(key, name, ROWS[key][name]) if name in ROWS[key] else "" for name in COLUMNS}


@pytest.mark.parametrize("key", [pytest.param(k, marks=[pytest.mark.slow] * (k not in FAST)) for k in ROWS])
def test_a_pipeline_is_guided_with_every_scheduler_that_runs_it(key):
    assert "✓" in row(key).values()


@pytest.mark.slow
def test_the_page_in_the_documentation_is_what_was_found(request):
    found = page({key: row(key) for key in ROWS})
    if request.config.getoption("--write-docs"):
        PAGE.write_text(found, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == found, "run it with --full --write-docs"


def test_the_page_tells_what_the_fast_rows_and_the_tables_say():
    missing = set(page({key: row(key) for key in FAST}).splitlines()) - set(PAGE.read_text("utf-8").splitlines())
    assert not missing, "run this file with --full --write-docs"
