"""Images that are drawn together come out as they do alone."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers.empty_images import spoil
from helpers.factories import save_tiny_clip, save_tiny_pipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import clip_guidance as cg
from clip_guidance.generation.batch import check_size, in_batches, shared
from clip_guidance.generation.generator import ImageGenerator
from clip_guidance.generation.image import FailedImageError
from clip_guidance.generation.settings import METHODS, GenerateSettings
from clip_guidance.generation.targets import ImageFile, PlacedTarget
from clip_guidance.guidance import methods

CHANGES = [{}, {"seed": 3}, {"steps": 2}, {"negative_prompt": "a dog"}, {"cutouts": 2}, {"cutouts": 2, "seed": 3}]


@given(st.lists(st.sampled_from(CHANGES), max_size=20), st.integers(1, 4))
def test_batches_hold_each_once_and_alike_in_their_order(changes, size):
    each = [(place, GenerateSettings("a cat", **change)) for place, change in enumerate(changes)]
    batches = list(in_batches(each, size, lambda one: one[1]))
    assert sorted(place for batch in batches for place, _ in batch) == list(range(len(each)))
    assert all(len({shared(one) for _, one in batch}) == 1 and len(batch) <= size for batch in batches)
    assert all(batch == sorted(batch, key=lambda one: one[0]) for batch in batches)
    kinds = {shared(one) for _, one in each}
    assert len(batches) <= len(each) // size + len(kinds)  # only the last of a kind is smaller


def test_particles_are_alone():
    assert len(list(in_batches([GenerateSettings("a cat", particles=2)] * 3, 3, lambda one: one))) == 3


def test_a_size_that_the_autoencoder_does_not_fit_is_refused():
    class Pipe:
        vae_scale_factor = 8

        def __call__(self, prompt, width=None, height=None):
            pass

    class Fixed:
        def __call__(self, prompt):
            pass

    check_size(Pipe(), GenerateSettings("a cat", width=64, height=8))
    with pytest.raises(ValueError, match="width must be a multiple of 8, as the autoencoder needs it, got 65"):
        check_size(Pipe(), GenerateSettings("a cat", width=65, height=8))
    with pytest.raises(ValueError, match="Fixed draws images of one size: it takes no width, got 64"):
        check_size(Fixed(), GenerateSettings("a cat", width=64, height=64))
    with pytest.raises(ValueError, match="give width and height, or none of them, got 64 and None"):
        GenerateSettings("a cat", width=64)


def test_every_method_has_a_name():
    assert {getattr(methods, name) for name in METHODS.values()} == set(methods.METHODS)
    assert GenerateSettings("a cat", method="dps").resolved().scale == 1.0  # the paper's step, whatever was measured
    with pytest.raises(ValueError, match="method must be one of dps, lgd-mc, .*, got 'dsp'"):
        GenerateSettings("a cat", method="dsp")
    with pytest.raises(ValueError, match="give a mode or a method, got x0 and dps"):
        GenerateSettings("a cat", method="dps", mode="x0")
    assert GenerateSettings("a cat", mode="x0").overridden({"method": "dps"}).mode is None


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    clip = save_tiny_clip(tmp_path_factory.mktemp("clip"))
    pipeline = save_tiny_pipeline(tmp_path_factory.mktemp("pipeline"), clip)
    return GenerateSettings("a red apple", model=str(pipeline), clip=str(clip), scale=20.0, steps=3)


@pytest.fixture(scope="module")
def make():
    return ImageGenerator()


def apart(one, other) -> int:
    return int(abs(np.asarray(one.image, np.int16) - np.asarray(other.image, np.int16)).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{}, {"scale": 0.0}, {"mode": "exact"}, {"cutouts": 3}, {"scheduler": "ddpm"}, {"scheduler": "dpm++-sde"},
     {"negative_prompt": "blue"}, {"method": "lgd-mc", "scale": 0.1}, {"width": 32, "height": 48}],
    ids=str,
)  # fmt: skip
def test_an_image_is_the_same_in_a_batch(settings, make, tmp_path, change):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    red = ImageFile.read(str(tmp_path / "red.png"))
    seeds = (5, 5, 5, 5) if change.get("cutouts") else (5, 6, -7, 8)  # crops are those of one seed
    each = [{"prompt": "a cat"}, {"clip_prompt": "a blue boat"}, {"clip_images": (red,)}]
    each += [{"regions": (PlacedTarget("a dog", (0.0, 0.0, 0.5, 1.0)),)}]
    batch = [dataclasses.replace(settings, **change, **own, seed=seed) for own, seed in zip(each, seeds, strict=True)]
    together = make.batch(batch)
    alone = [make(one) for one in batch]
    assert max(apart(*pair) for pair in zip(together, alone, strict=True)) <= 1
    assert apart(alone[0], alone[1]) > 1 or seeds[0] == seeds[1]
    assert [one.settings for one in together] == [one.settings for one in alone]
    assert together[0].record()["batch_size"] == 4 and "batch_size" not in alone[0].record()
    for one, other in zip(together, alone, strict=True):
        assert one.scores[0]["score"] == pytest.approx(other.scores[0]["score"], abs=0.1)


@pytest.mark.slow
def test_an_image_that_fails_costs_itself_alone(settings, make, monkeypatch):
    batch = [dataclasses.replace(settings, seed=seed) for seed in (1, 2, 3)]
    expected = make.batch(batch)
    spoil(monkeypatch, 2)
    one, failed, other = make.batch(batch)
    assert apart(one, expected[0]) == apart(other, expected[2]) == 0
    assert isinstance(failed, FailedImageError) and failed.reason == "is of one color, (0, 0, 0)"


@pytest.mark.slow
def test_latents_that_are_not_finite_cost_their_image(settings, make):
    batch, plain = [dataclasses.replace(settings, scale=0.0, seed=seed) for seed in (1, 2)], make(settings)
    unet = make.pipeline(plain.settings).unet

    def overflow(unet, args, output):
        output[0][1::2] = torch.nan  # of the second image, in both halves
        return output

    hook = unet.register_forward_hook(overflow)
    try:
        one, failed = make.batch(batch)
    finally:
        hook.remove()
    assert apart(one, make(batch[0])) <= 1
    assert failed.reason == "is not finite after step 1 of 3"


@pytest.mark.slow
def test_a_method_is_that_of_the_paper(settings, make):
    one = dataclasses.replace(settings, method="dps", scale=30.0)
    pipe = make.pipeline(one)
    with cg.CLIPGuidance(one.clip, "a red apple", 30.0, mode=methods.DPS(), decoding=None).attach(pipe):
        generator = torch.Generator().manual_seed(0)
        image = pipe("a red apple", num_inference_steps=3, guidance_scale=3.0, generator=generator).images[0]
    assert image.tobytes() == make(one).image.tobytes() != make(dataclasses.replace(one, scale=0.0)).image.tobytes()


@pytest.mark.slow
def test_candidates_are_drawn_together(settings, make, monkeypatch):
    from clip_guidance.generation.candidates import Candidates

    drawn = spoil(monkeypatch)
    alone = make.best_of(settings, Candidates(5, keep=5))
    together = make.best_of(settings, Candidates(5, keep=5), batch_size=2)
    assert drawn == [[0], [1], [2], [3], [4], [0, 1], [2, 3], [4]]
    assert [one.settings for one in together] == [one.settings for one in alone]
    assert max(apart(*pair) for pair in zip(together, alone, strict=True)) <= 1
