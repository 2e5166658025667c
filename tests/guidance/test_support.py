"""Pipeline × scheduler: what runs with what, guided. With ``--write-docs`` this test writes docs/support.md."""

import warnings

import diffusers
import pytest
from diffusers.utils import is_scipy_available, is_torchsde_available
from support_page import COLUMNS, DIFFUSION, FLOW, PAGE, page
from zoo import built, mean_redness, redness, run

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


@pytest.fixture(scope="module")
def rows(request):
    """{pipeline: {scheduler: outcome}}; at the end the page is written if it was asked for."""
    found = {}
    yield found
    if request.config.getoption("--write-docs") and set(found) == set(ROWS):
        PAGE.write_text(page(found), encoding="utf-8")


@pytest.mark.parametrize("key", ROWS)
def test_a_pipeline_is_guided_with_every_scheduler_that_runs_it(key, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers, about settings that one scheduler takes and another does not
        rows[key] = {name: outcome(key, name, ROWS[key][name]) if name in ROWS[key] else "" for name in COLUMNS}
    assert "✓" in rows[key].values()


def test_the_page_in_the_documentation_is_what_was_found(rows, request):
    if set(rows) != set(ROWS):
        pytest.skip("needs all rows: run the whole file")
    print(page(rows))
    if not request.config.getoption("--write-docs"):
        assert PAGE.read_text(encoding="utf-8") == page(rows), "run it with --write-docs"
