"""The packaged pipeline's noise schedule: it is the one that was trained with, and no step of it hangs on rounding."""

import json

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from helpers.gaussian import MEAN, centered, make_pipe, sample

import clip_guidance as cg
from clip_guidance.clip.hub import PACKAGED
from clip_guidance.generation.settings import SCHEDULERS
from clip_guidance.training.diffusion.denoiser import make_scheduler

#: Zero terminal signal-to-noise ratio (arXiv:2305.08891), with which the packaged UNet was trained.
ZERO_SNR = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "steps_offset": 1,
}
ULP = 2.0**-23  # a whole unit in the last place of float32, whatever the processor's rounding


@pytest.fixture(scope="module")
def scheduler() -> DDIMScheduler:
    return DDIMScheduler.from_pretrained(PACKAGED / "emoji" / "scheduler")


def least_direction(scheduler, steps):
    """1 − ᾱ' − τ² of each step of DDIM at η = 1, the least that float32 can make of it, relative to 1 − ᾱ'."""

    def up(x):
        return x * (1 + ULP)

    def down(x):
        return x * (1 - ULP)

    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    following = timesteps - 1000 // steps
    products = scheduler.alphas_cumprod.double()
    before = products[timesteps]
    after = torch.where(following >= 0, products[following.clamp(min=0)], scheduler.final_alpha_cumprod.double())
    rest_before, rest_after = 1 - before, 1 - after  # the second is the same number wherever it is computed
    variance = up(up(rest_after / down(rest_before)) * up(1 - down(before / after)))
    least = rest_after - up(up(variance.sqrt()) ** 2)
    return torch.where(rest_after > 0, least / rest_after, torch.ones_like(least))


def test_no_root_of_ddim_hangs_on_rounding(scheduler):
    assert all((least_direction(scheduler, steps) > 2 * ULP).all() for steps in range(1, 1001))
    # what it was trained with does, at its first step
    trained = DDIMScheduler(**ZERO_SNR)
    assert all(least_direction(trained, steps)[0] < 0 for steps in (2, 10, 20, 50, 999))


def test_its_noise_levels_are_those_it_was_trained_with(scheduler):
    zero = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    roots = (1 - zero).cumprod(0).sqrt()
    expected = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2  # algorithm 1 of the paper
    assert (scheduler.alphas_cumprod - expected).abs().max() < 7e-7
    assert scheduler.alphas_cumprod[-1].item() == pytest.approx(5e-7, rel=1e-3)
    assert (scheduler.alphas_cumprod.diff() < 0).all()


def test_training_makes_the_packaged_schedule(scheduler):
    stored = json.loads((PACKAGED / "emoji" / "scheduler" / "scheduler_config.json").read_text())
    made = json.loads(make_scheduler().to_json_string())
    assert {k: v for k, v in made.items() if k[0] != "_"} == {k: v for k, v in stored.items() if k[0] != "_"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # KDPM2 under numpy 2
def test_every_scheduler_made_from_its_config_samples_from_pure_noise(scheduler, name):
    """A Gaussian with its ideal denoiser, as in tests/guidance/test_oracle.py: its mean comes out."""

    class Setting:
        prediction, scheduler = "v_prediction", SCHEDULERS[name][0]

        @staticmethod
        def make():
            cls, changes = SCHEDULERS[name]
            return getattr(diffusers, cls).from_config(scheduler.config, **changes)

    pipe = make_pipe(Setting)
    torch.testing.assert_close(pipe.scheduler.alphas_cumprod[:-1].float(), scheduler.alphas_cumprod[:-1])
    steps = 24
    found = sample(pipe, steps)
    assert found.isfinite().all()
    assert ((found - centered(pipe, steps)) / MEAN).tolist() == pytest.approx([1, 1], abs=0.1)


@pytest.mark.slow
def test_it_survives_saving_a_stock_pipeline_and_draws_as_before(scheduler, tmp_path):
    pipe = cg.load_pipeline("emoji")
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert loaded.scheduler.alphas_cumprod.equal(scheduler.alphas_cumprod)

    def draw(eta):
        options = {"num_inference_steps": 3, "guidance_scale": 3.0, "eta": eta, "output_type": "pt"}
        return pipe("a noto picture of a rocket", generator=torch.manual_seed(0), **options).images

    found = [draw(eta) for eta in (0.0, 1.0)]
    pipe.scheduler = DDIMScheduler(**ZERO_SNR)
    torch.testing.assert_close(found[0], draw(0.0), rtol=0, atol=0.01)  # 2.5 of 255 levels
    assert found[1].isfinite().all() and found[1].std() > 0.05
