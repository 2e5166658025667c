"""Mode "noisy": exact on the Gaussian oracle with the true likelihood, and refused where the tower misfits."""

import math

import pytest
import torch
from helpers.factories import generate, make_clip
from helpers.gaussian import STD, guided, make_pipe, sample
from helpers.noisy_towers import Reward, make_tower, with_tower
from helpers.scheduler_matrix import FEW, ONE_EACH, matrix

from clip_guidance.clip.hub import ModelError
from clip_guidance.guidance import CLIPGuidance, Guidance, Region
from clip_guidance.guidance.modes.noisy import Noisy
from clip_guidance.towers.noisy import NoisyTower

STEPS = 8


# ---------------------------------------------------------------- the Gaussian oracle


@matrix(ONE_EACH, default=FEW)
def test_one_tower_serves_every_scheduler(setting):
    """The guided samples are those of mode "x0", which is exact here."""
    pipe, tower = with_tower(setting)
    expected = guided(make_pipe(setting), STEPS)
    with Guidance(Reward(), mode=Noisy(tower), space="latent", data_variance=STD**2).attach(pipe) as guidance:
        found = sample(pipe, STEPS)
    assert len(guidance.report.rewards) == len(guidance.report.steps) > 0
    torch.testing.assert_close(found, expected, atol=1e-3 * max(1, expected.abs().max().item()), rtol=0)


# ---------------------------------------------------------------- a tower of its own on a tiny pipeline


@pytest.fixture
def tower(tiny_pipeline, request):
    return make_tower(tiny_pipeline().vae, getattr(request, "param", 1))


@pytest.mark.parametrize("tower", [1, 2], indirect=True, ids=["latents", "patches"])
def test_the_target_is_reached_for_and_nothing_is_decoded(tiny_pipeline, tower, monkeypatch):
    pipe, clip = tiny_pipeline(), make_clip()
    plain = generate(pipe, output_type="latent")
    monkeypatch.setattr(type(pipe.vae), "decode", lambda *_: pytest.fail("a decode"))
    with CLIPGuidance(clip, "dog", 5.0, mode=Noisy(tower)).attach(pipe) as guidance:
        raised = generate(pipe, output_type="latent")
    with CLIPGuidance(clip, "dog", -5.0, mode=Noisy(tower)).attach(pipe):
        lowered = generate(pipe, output_type="latent")
    level = torch.full((len(plain),), 6.0)
    cosines = [(tower(x, level).embeds @ clip.encode_text("dog").T).mean().item() for x in (lowered, plain, raised)]
    assert cosines == sorted(cosines) and len(set(cosines)) == 3
    assert len(guidance.report.rewards) == len(guidance.report.steps)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in tower.parameters())


def test_each_prompt_has_its_own_target_and_no_neighbours(tiny_pipeline, tower):
    pipe, clip = tiny_pipeline(), make_clip()

    def images(target):
        with CLIPGuidance(clip, target, 5.0, mode=Noisy(tower)).attach(pipe):
            return generate(pipe, seeds=(0, 1), num_images_per_prompt=2, output_type="latent")

    dog, owl = images("dog"), images({"owl": 1.0, "dog": -0.5})
    both = images(["dog", {"owl": 1.0, "dog": -0.5}])
    torch.testing.assert_close(both, torch.stack([dog[0], owl[1]]), atol=1e-5, rtol=0)


def test_a_tower_goes_to_disk_and_comes_back(tower, tmp_path):
    tower.save_pretrained(tmp_path)
    found = NoisyTower.from_pretrained(tmp_path)
    x, level = torch.randn(2, tower.config["latent_channels"], 8, 8), torch.tensor([math.inf, -math.inf])
    for name in ("embeds", "logit_scale"):
        assert getattr(found(x, level), name).equal(getattr(tower(x, level), name))
    assert found.latent_probe.equal(tower.latent_probe) and not found.training


def test_embeddings_are_unit_vectors_that_know_the_level(tower):
    x = torch.randn(3, tower.config["latent_channels"], 8, 8)
    clean, noise = (tower(x, torch.full((3,), level)).embeds for level in (3.0, -3.0))
    torch.testing.assert_close(clean.norm(dim=-1), torch.ones(3))
    assert (clean - noise).abs().max() > 1e-3


# ---------------------------------------------------------------- refused


def test_a_tower_of_other_latents_or_of_another_clip_is_refused(tiny_pipeline, tower):
    pipe, clip = tiny_pipeline(), make_clip()

    def attach(target="dog", clip=clip, mode=None):
        with CLIPGuidance(clip, target, mode=mode or Noisy(tower)).attach(pipe):
            pass

    attach()
    with pytest.raises(ValueError, match=r"mode 'noisy' reads the whole sample: a Region needs mode 'x0' or 'exact'"):
        attach(Region("dog", (0, 0, 0.5, 1)))
    with pytest.raises(ValueError, match=r"the tower was trained with another CLIP than this CLIP"):
        attach(clip=make_clip(seed=1))
    tower.latent_probe.neg_()
    with pytest.raises(ValueError, match=r"trained on the latents of another autoencoder than StableDiffusionPipeline"):
        attach()
    wide = NoisyTower(pipe.vae.config.latent_channels + 1, clip.projection_dim, [8], 1)
    with pytest.raises(ValueError, match=r"the tower reads latents of \d channels, StableDiffusionPipeline has \d"):
        attach(mode=Noisy(wide))
    message = "no tower for noisy latents belongs to this CLIP; train one with `clip-guidance train noisy-tower`"
    with pytest.raises(ModelError, match=message):
        attach(mode="noisy")
    with pytest.raises(TypeError, match="mode 'noisy' steers towards the target of a CLIPGuidance, got function"):
        Guidance(lambda images: images.mean((1, 2, 3)), mode=Noisy(tower)).attach(pipe).__enter__()


@pytest.mark.parametrize("widths", [[], [12], [0]])
def test_widths_are_multiples_of_8(widths):
    with pytest.raises(ValueError, match="widths: expected positive multiples of 8, got"):
        NoisyTower(widths=widths)
    with pytest.raises(ValueError, match="expected at least 1 of each, got .*depth 2, patch_size 0"):
        NoisyTower(patch_size=0)


def test_a_tower_is_a_tower():
    with pytest.raises(TypeError, match="tower must be a NoisyTower, got str 'emoji'"):
        Noisy("emoji")
