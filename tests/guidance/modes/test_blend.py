"""Mode "blend": exact on the Gaussian oracle, the tower's shift and CLIP's by the share of noise, and its refusals."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers.factories import generate, make_clip
from helpers.gaussian import STD, TILT, guided, make_pipe, sample
from helpers.noisy_towers import Reward, make_tower, with_tower
from helpers.scheduler_matrix import FEW, ONE_EACH, matrix

import clip_guidance as cg
from clip_guidance.guidance import CLIPGuidance, Guidance, Region
from clip_guidance.guidance.adapters.noise_level import NoiseLevel
from clip_guidance.guidance.config import mode_from_config, mode_to_config
from clip_guidance.guidance.modes import StepState
from clip_guidance.guidance.modes.blend import Blend
from clip_guidance.guidance.modes.noisy import Noisy
from clip_guidance.guidance.modes.x0 import posterior_variance

STEPS = 8


class LinearReward(Reward):
    """The same target as CLIP sees it: TILT·x₀."""

    def __call__(self, x):
        return TILT * x.flatten(1).sum(1)


@matrix(ONE_EACH, default=FEW)
def test_where_both_are_exact_so_is_their_blend(setting):
    pipe, tower = with_tower(setting)
    expected = guided(make_pipe(setting), STEPS)
    mode = Blend(tower, noisy_weight=1.0)
    with Guidance(LinearReward(), mode=mode, space="latent", data_variance=STD**2).attach(pipe) as guidance:
        found = sample(pipe, STEPS)
    assert len(guidance.report.rewards) == len(guidance.report.steps) > 0
    torch.testing.assert_close(found, expected, atol=1e-3 * max(1, expected.abs().max().item()), rtol=0)


@pytest.mark.parametrize("alpha, sigma, noise", [(0.8, 0.6, 0.36), (0.6, 0.8, 0.64), (1.0, 7.0, 0.98)])
def test_each_has_its_share(tiny_pipeline, alpha, sigma, noise):
    torch.manual_seed(1)
    tower, clip = make_tower(tiny_pipeline().vae).double(), make_clip()
    x, gradient = torch.randn(2, 2, tower.config["latent_channels"], 8, 8, dtype=torch.float64)
    reward = SimpleNamespace(embeds_for=lambda batch: clip.encode_text("dog").double().expand(batch, -1))
    state = StepState(
        prediction=SimpleNamespace(sample=x, x0=x, level=NoiseLevel(alpha, sigma)),
        timestep=0,
        scheduler=None,
        scale=torch.ones(2),
        data_variance=1.0,
        reward_gradient=lambda x0: SimpleNamespace(gradient=gradient),
        vjp=None,
        reward=reward,
    )
    by_tower = Noisy(tower).shift(state)
    by_clip = posterior_variance(NoiseLevel(alpha, sigma), 1.0) * gradient
    assert by_tower.abs().max() > 0
    expected = 0.6 * noise * by_tower + (1 - noise) * by_clip
    torch.testing.assert_close(Blend(tower).shift(state), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(Blend(tower, 0.0).shift(state), (1 - noise) * by_clip, rtol=1e-9, atol=0)


def test_the_rewards_are_those_of_the_images(tiny_pipeline):
    pipe, clip = tiny_pipeline(), make_clip()

    def rewards(mode):
        with CLIPGuidance(clip, "dog", 1e-6, mode=mode).attach(pipe) as guidance:
            generate(pipe)
        return torch.stack(guidance.report.rewards)

    tower = make_tower(pipe.vae)
    torch.testing.assert_close(rewards(Blend(tower)), rewards("x0"), rtol=1e-3, atol=1e-4)
    assert (rewards(Noisy(tower)) - rewards("x0")).abs().max() > 1e-2


def test_what_it_cannot_steer_by_is_refused(tiny_pipeline):
    pipe, clip = tiny_pipeline(), make_clip()
    blend = Blend(make_tower(pipe.vae))
    with pytest.raises(ValueError, match="mode 'blend' reads the whole sample: a Region needs mode 'x0' or 'exact'"):
        CLIPGuidance(clip, Region("dog", (0, 0, 0.5, 1)), mode=blend).attach(pipe).__enter__()
    with pytest.raises(cg.ModelError, match=r"mode 'blend': no tower .* and pass mode=Blend\(tower\)"):
        CLIPGuidance(clip, "dog", mode="blend").attach(pipe).__enter__()
    with pytest.raises(TypeError, match="noisy_weight must be a number, got str 'half'"):
        Blend(noisy_weight="half")
    with pytest.raises(ValueError, match="noisy_weight must be a finite number of at least 0, got -1"):
        Blend(noisy_weight=-1)
    with pytest.raises(ValueError, match="noisy_weight must be a finite number of at least 0, got nan"):
        Blend(noisy_weight=float("nan"))
    with pytest.raises(TypeError, match="tower must be a NoisyTower, got str 'emoji'"):
        Blend("emoji")


def test_a_config_holds_its_weight_and_no_tower(tiny_pipeline):
    for mode in (Blend(noisy_weight=2.0), Noisy()):
        assert mode_from_config(json.loads(json.dumps(mode_to_config(mode)))) == mode
    with pytest.raises(TypeError, match="does not hold weights, as the tower of mode Blend has: save .*'noisy'"):
        mode_to_config(Blend(make_tower(tiny_pipeline().vae)))
