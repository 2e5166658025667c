"""Adaptive classifier-free guidance: the best scale in closed form, and nothing else changed by choosing it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from helpers.factories import Recorder, generate, make_pipeline
from helpers.gaussian import GaussianDenoiser, initial, peer_level, set_timesteps, stepper, watched
from helpers.minimal_pipeline import modes
from helpers.scheduler_matrix import FEW, ONE_EACH, matrix
from torch import nn

from clip_guidance.guidance import AdaptiveCFG, Guidance

UNCOND, COND, TARGET, OWN, STEPS = -0.4, 0.3, 1.2, 3.0, 4
SCALES = (1.25, 2.0, 3.0, 4.5, 7.0)


class TwoGaussians(GaussianDenoiser):
    """E[x₀ | x] of N(UNCOND, STD²) and N(COND, STD²) data, of the two halves of a batch."""

    def forward(self, x, t):
        predictions = []
        for self.mean, half in zip((UNCOND, COND), x.chunk(2), strict=True):
            predictions.append(super().forward(half, t))
        return torch.cat(predictions)


def two_gaussians(setting):
    scheduler = setting.make()
    return SimpleNamespace(scheduler=scheduler, unet=TwoGaussians(scheduler, setting.prediction))


def sample(pipe, scale, steps=STEPS, rows=slice(None)):
    """Clean samples by classifier-free guidance, as a pipeline takes them."""
    scheduler, denoiser = pipe.scheduler, pipe.unet
    timesteps = set_timesteps(scheduler, steps)
    step, x = stepper(scheduler, timesteps), initial(scheduler, count=3)[rows]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for i, t in enumerate(timesteps):
            denoiser.level = peer_level(scheduler, i, t)
            read = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            read = read / scheduler.config.sigma_data if type(scheduler).__name__ == "SCMScheduler" else read
            uncond, cond = denoiser(torch.cat([read, read]), t).chunk(2)
            x = step(i, uncond + scale * (cond - uncond), t, x)
    return x


def near_target(x):
    return -(x - TARGET).square().flatten(1).sum(1)


def steps_of(setting):
    return min(max(STEPS, setting.steps[0]), setting.steps[1])


@matrix(ONE_EACH, default=FEW)
def test_the_scale_is_the_one_whose_mean_is_nearest_to_the_target(setting):
    """x̂₀ = m + g·(x − α·m) for a mean m: what a scale adds to it is known."""
    pipe, nearest = two_gaussians(setting), []

    def look(step, output, t, x):
        gain, (alpha, _) = pipe.unet.gain(), pipe.unet.level
        uncond, cond = (mean + gain * (x - alpha * mean) for mean in (UNCOND, COND))
        errors = torch.stack([(uncond + s * (cond - uncond) - TARGET).abs().flatten() for s in SCALES])
        nearest.append(torch.tensor(SCALES)[errors.argmin(0)])
        return step(output)

    with AdaptiveCFG(near_target, SCALES, space="latent").attach(pipe) as adaptive, watched(pipe.scheduler, look):
        sample(pipe, OWN, steps_of(setting))
    assert len(nearest) == len(adaptive.chosen) > 0
    for chosen, own, expected in zip(adaptive.chosen, adaptive.report.own, nearest, strict=True):
        assert chosen.equal(expected)
        assert own.tolist() == pytest.approx([OWN] * 3, rel=1e-3)
    assert torch.stack(nearest).unique().numel() > 1


@matrix(ONE_EACH, default=FEW)
def test_one_scale_is_classifier_free_guidance_with_it_to_the_bit(setting):
    pipe, steps = two_gaussians(setting), steps_of(setting)
    for scale in (OWN, 4.5):
        with AdaptiveCFG(near_target, (scale,), space="latent").attach(pipe):
            found = sample(pipe, OWN, steps)
        assert found.equal(sample(pipe, scale, steps))


def test_a_choice_does_not_depend_on_the_neighbours():
    pipe = two_gaussians(FEW[0])
    with AdaptiveCFG(near_target, SCALES, space="latent").attach(pipe) as adaptive:
        together, chosen = sample(pipe, OWN), adaptive.chosen
        for row in range(3):
            alone = sample(pipe, OWN, rows=slice(row, row + 1))
            assert alone.equal(together[row : row + 1])
            assert torch.cat(adaptive.chosen).equal(torch.stack(chosen)[:, row])
    assert (torch.stack(chosen) != torch.stack(chosen)[:, :1]).any()


# ---------------------------------------------------------------- ties, and what is not finite


def test_of_equal_rewards_the_scale_nearest_to_the_pipelines_own_wins():
    pipe = two_gaussians(FEW[0])
    for scales, expected in (((1.0, 2.5, 9.0), 2.5), ((9.0, 3.0, 1.0), 3.0)):
        with AdaptiveCFG(lambda x: torch.zeros(len(x)), scales, space="latent").attach(pipe) as adaptive:
            sample(pipe, OWN)
        assert torch.stack(adaptive.chosen).unique().tolist() == [expected]


@pytest.mark.parametrize("bad", [math.nan, *(pytest.param(x, marks=pytest.mark.slow) for x in (math.inf, -math.inf))])
def test_a_reward_that_is_not_finite_never_wins(bad):
    pipe = two_gaussians(FEW[0])

    def reward(x):
        return torch.where(x.flatten() > x.flatten().mean(), torch.full((len(x),), bad), near_target(x).float())

    def bad_for_the_first(x):
        return torch.cat([torch.full((1,), bad), near_target(x)[1:].float()])

    with AdaptiveCFG(reward, SCALES, space="latent").attach(pipe) as adaptive, pytest.warns(match="no finite reward"):
        sample(pipe, OWN)
    finite = torch.stack([each.isfinite().any(0) for each in adaptive.report.rewards])
    assert torch.stack(adaptive.chosen)[~finite].tolist() == pytest.approx([OWN] * int((~finite).sum()), rel=1e-3)
    with AdaptiveCFG(bad_for_the_first, (9.0,), space="latent").attach(pipe), pytest.warns(match="1 of 3 images"):
        found = sample(pipe, OWN)
    assert found[:1].equal(sample(pipe, OWN)[:1])
    assert found[1:].equal(sample(pipe, 9.0)[1:])


# ---------------------------------------------------------------- stock pipelines


def brightness(images):
    return images.mean((1, 2, 3))


def test_choices_raise_the_reward_without_a_gradient(tiny_pipeline):
    pipe = tiny_pipeline()
    grads = []

    def of_pil(images):
        grads.append(torch.is_grad_enabled())
        return [np.asarray(image).mean() / 255 for image in images]

    options = {"seeds": (0, 1), "output_type": "pt"}
    plain = generate(pipe, ["cat"] * 2, **options)
    for reward in (brightness, of_pil):
        with AdaptiveCFG(reward, (1.5, 3.0, 8.0)).attach(pipe) as adaptive:
            images = generate(pipe, ["cat"] * 2, **options)
        assert (brightness(images) > brightness(plain)).all()
        assert adaptive.report.steps == [0, 1, 2, 3] and len(adaptive.chosen) == 4
    assert not any(grads) and len(grads) == 12
    assert "step" not in vars(pipe.scheduler) and not pipe.unet._forward_hooks


def test_outside_of_the_window_the_pipelines_own_scale_is_used(tiny_pipeline):
    pipe = tiny_pipeline()
    outputs = []
    for options in ({}, {"start": 0.25, "stop": 0.75}):
        recorder = Recorder(pipe.scheduler)
        with AdaptiveCFG(brightness, (3.0,) if not options else (8.0,), **options).attach(pipe) as adaptive:
            generate(pipe)
        del pipe.scheduler.step
        outputs.append(recorder.calls)
    assert adaptive.report.steps == [1, 2]
    (first, second, *_), (same, other, *_) = outputs
    assert same[0].equal(first[0]) and not other[0].equal(second[0])
    late = AdaptiveCFG(brightness, (8.0,), start=0.9)
    with pytest.warns(match="AdaptiveCFG chose a scale at no step of a run: start=0.9"), late.attach(pipe):
        generate(pipe)


@pytest.mark.slow
def test_guidance_rescale_is_kept(tiny_pipeline):
    pipe = tiny_pipeline().to(torch.float64)  # the order of the sums is another one, which float32 rounds by 2e-5
    options = {"guidance_rescale": 0.7, "steps": 3, "seeds": (0, 1), "prompt": ["cat", "dog"]}
    for scale in (3.0, 8.0):
        with AdaptiveCFG(brightness, (scale,)).attach(pipe) as adaptive:
            found = generate(pipe, **options)
        torch.testing.assert_close(found, generate(pipe, guidance_scale=scale, **options), atol=1e-5, rtol=1e-5)
        assert adaptive.report.own[0].tolist() == pytest.approx([3.0] * 2, rel=1e-3)


@pytest.mark.slow
@modes
def test_a_guidance_inside_steers_from_the_chosen_scale(tiny_pipeline, mode):
    pipe = tiny_pipeline()

    def guidance():
        return Guidance(brightness, 30.0, mode).attach(pipe)

    with guidance():
        expected = generate(pipe, guidance_scale=8.0)
    with AdaptiveCFG(brightness, (8.0,)).attach(pipe), guidance():
        torch.testing.assert_close(generate(pipe), expected, rtol=1e-4, atol=1e-4)
    with guidance(), AdaptiveCFG(brightness, (8.0,)).attach(pipe):
        torch.testing.assert_close(generate(pipe), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_it_works_with_a_compiled_denoiser_and_one_in_half_precision(tiny_pipeline):
    pipe = tiny_pipeline()
    plain, expected = generate(pipe), generate(pipe, guidance_scale=8.0)
    for scale, images in ((3.0, plain), (8.0, expected)):
        pipe = tiny_pipeline()
        unet = pipe.unet
        pipe.unet = torch.compile(unet, backend="eager")
        with AdaptiveCFG(brightness, (scale,)).attach(pipe):
            assert generate(pipe).equal(images)
    pipe = tiny_pipeline()
    pipe.unet = unet
    pipe.to(torch.bfloat16)
    with AdaptiveCFG(brightness, (3.0,)).attach(pipe) as adaptive:
        found = generate(pipe)
    assert found.equal(generate(pipe))
    assert torch.cat(adaptive.report.own).tolist() == pytest.approx([3.0] * 4, rel=0.05)
    pipe.to(torch.float32)


@pytest.mark.slow
def test_it_works_with_weights_that_come_layer_by_layer():
    pipe, plain = make_pipeline(), make_pipeline()
    for network in (pipe.unet, pipe.vae):
        cpu_offload(network, torch.device("cpu"))
    assert all(weight.is_meta for weight in pipe.unet.parameters())
    found = []
    for each in (pipe, plain):
        with AdaptiveCFG(brightness, (1.5, 3.0, 8.0)).attach(each) as adaptive:
            found.append((generate(each), torch.cat(adaptive.chosen)))
    assert found[0][0].equal(found[1][0]) and found[0][1].equal(found[1][1])


# ---------------------------------------------------------------- refused


def test_without_classifier_free_guidance_there_is_nothing_to_choose(tiny_pipeline):
    pipe = tiny_pipeline()
    message = "needs two predictions, with and without the prompt; UNet2DConditionModel made 1 at step 0.*distilled"
    with pytest.raises(ValueError, match=message), AdaptiveCFG(brightness).attach(pipe):
        generate(pipe, guidance_scale=1.0)
    assert "step" not in vars(pipe.scheduler)


class Odd(nn.Module):
    """Two predictions, and none of the kind that is known."""

    def forward(self, x, t):
        return torch.cat([x, x.square()])


def test_another_rule_is_refused():
    pipe = SimpleNamespace(scheduler=FEW[0].make(), unet=Odd())
    pipe.scheduler.set_timesteps(4)
    x = torch.linspace(-1, 2, 24).reshape(2, 3, 4)
    message = r"expected u \+ s·\(c − u\) of the two predictions of Odd.*another rule"
    with pytest.raises(ValueError, match=message), AdaptiveCFG(near_target, space="latent").attach(pipe):
        uncond, cond = pipe.unet(x, 0).chunk(2)
        pipe.scheduler.step(uncond * cond + 1, pipe.scheduler.timesteps[0], x)


WRONG = [
    ({"reward": 3}, TypeError, "expected a reward, a function of images"),
    ({"scales": ()}, ValueError, r"scales must be finite, got \(\)"),
    ({"scales": (1.0, math.nan)}, ValueError, "scales must be finite"),
    ({"scales": "7"}, TypeError, "scales must be a number or several, got str"),
    ({"start": 0.5, "stop": 0.5}, ValueError, "expected 0 <= start < stop <= 1, got start=0.5, stop=0.5"),
    ({"space": "pixels"}, ValueError, "space must be one of image, latent, got 'pixels'"),
    ({"guider": 3}, TypeError, "guider must be a guider of diffusers"),
    ({"decoding": 3}, TypeError, "decoding must be .auto., a Decoding, or None, got int"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message) as raised:
        AdaptiveCFG(**{"reward": brightness, **options})
    assert len(str(raised.value)) <= 300
    adaptive = AdaptiveCFG(brightness)
    ((name, value), *_) = options.items()
    if len(options) == 1:
        with pytest.raises(error, match=message):
            setattr(adaptive, name, value)
        assert getattr(adaptive, name) == getattr(AdaptiveCFG(brightness), name)
