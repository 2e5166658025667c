"""From clean samples to images: what each setting of Decoding sees, costs and keeps."""

import importlib
from dataclasses import replace

import pytest
import torch
from helpers.decoding import contrast, gradient, latents
from helpers.factories import generate, make_pipeline
from helpers.memory_fixtures import make_tiny_decoder

from clip_guidance.guidance import Decoding, Guidance
from clip_guidance.guidance.adapters.layouts import already_latents
from clip_guidance.guidance.engine.decoder import Decoder
from clip_guidance.guidance.engine.gradient import reward_gradient
from clip_guidance.guidance.memory.measure import decoder_bytes, decoder_on_meta

SETTINGS = {
    "plain": Decoding(),
    "checkpoint": Decoding(checkpoint=True),
    "images": Decoding(images=1),
    "pairs": Decoding(images=2, checkpoint=True),
    "resolution": Decoding(resolution=0.5),
    "crop": Decoding(crop=0.5),
    "both": Decoding(resolution=0.75, crop=0.75),
    "tiny": Decoding(make_tiny_decoder().double()),
}
settings = pytest.mark.parametrize("decoding", SETTINGS.values(), ids=SETTINGS)
EXACT = ("checkpoint", "images", "pairs")


@pytest.mark.parametrize("name", EXACT)
def test_exact_settings_have_the_plain_gradient(tiny_pipeline, name):
    pipe, x0 = tiny_pipeline(dtype=torch.float64), latents(3)
    plain = gradient(pipe, Decoding(), x0)
    assert plain.flatten(1).norm(dim=1).min() > 1e-3
    torch.testing.assert_close(gradient(pipe, SETTINGS[name], x0), plain)


@settings
def test_the_gradient_agrees_with_finite_differences(tiny_pipeline, decoding):
    pipe, x0, direction, step = tiny_pipeline(dtype=torch.float64), latents(), latents(seed=1), 1e-5
    decoder = Decoder(pipe, "image", decoding)
    found = reward_gradient(contrast, decoder, x0)
    with torch.no_grad():  # the window of the step stays
        torch.testing.assert_close(found.rewards, contrast(decoder(x0)))
        higher, lower = (contrast(decoder(x0 + sign * step * direction)) for sign in (1, -1))
    expected = (higher - lower) / (2 * step)
    torch.testing.assert_close((found.gradient * direction).flatten(1).sum(1), expected, rtol=1e-5, atol=1e-8)


@settings
def test_no_image_depends_on_its_neighbours(tiny_pipeline, decoding):
    pipe, x0 = tiny_pipeline(dtype=torch.float64), latents(3)
    together = gradient(pipe, decoding, x0)
    for i in range(3):
        torch.testing.assert_close(gradient(pipe, decoding, x0[i : i + 1]), together[i : i + 1])


# ---------------------------------------------------------------- a smaller image, a part of it


def test_a_smaller_image_is_decoded_from_averaged_latents(tiny_pipeline):
    pipe = tiny_pipeline()
    decoder = Decoder(pipe, "image", Decoding(resolution=0.5))
    flat = torch.full((1, 4, 8, 6), 0.3)
    expected = Decoder(pipe, "image")(torch.full((1, 4, 4, 2), 0.3))  # of 3 there is one whole patch of 2
    torch.testing.assert_close(decoder(flat), expected)


def test_the_gradient_is_zero_outside_the_window(tiny_pipeline):
    pipe, x0 = tiny_pipeline(dtype=torch.float64), latents(2, (12, 8))
    decoder = Decoder(pipe, "image", Decoding(crop=0.5))
    windows = set()
    for _ in range(30):
        touched = reward_gradient(contrast, decoder, x0).gradient.ne(0)
        assert touched[0].equal(touched[1])  # one window for the batch
        rows, columns = (touched[0].any(0).any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        assert len(rows) == len(columns) == 4 and touched[0, :, rows[0] : rows[-1] + 1, columns].all()
        windows.add((rows[0], columns[0]))
    tops, lefts = ({each[axis] for each in windows} for axis in (0, 1))
    assert tops == {0, 2, 4, 6, 8} and lefts == {0, 2, 4}  # every place, also at the borders


def test_windows_start_over_in_each_run(tiny_pipeline):
    pipe, seen = tiny_pipeline(), []

    def reward(images):
        seen.append(images.detach().clone())
        return contrast(images)

    def run(seed):
        seen.clear()
        with Guidance(reward, decoding=Decoding(crop=0.25, seed=seed)).attach(pipe):
            return generate(pipe), generate(pipe), list(seen)

    first, second, images = run(seed=0)
    assert first.equal(second) and len(images) == 8
    assert all(a.equal(b) for a, b in zip(images[:4], images[4:], strict=True))
    assert not run(seed=1)[0].equal(first)


def test_windows_do_not_touch_the_global_generator(tiny_pipeline):
    state = torch.get_rng_state()
    gradient(tiny_pipeline(dtype=torch.float64), Decoding(crop=0.5), latents())
    assert torch.get_rng_state().equal(state)


def test_a_window_holds_whole_patches_where_the_decoder_normalises_by_patch():
    pipe, _ = importlib.import_module("helpers.pipelines.flux").PIPELINES["Flux2Pipeline"]()
    decoder = Decoder(pipe, "image", Decoding(crop=0.4))
    decoder.adapter = replace(decoder.adapter, unpack=already_latents)
    sample = torch.randn(1, 4, 12, 10, generator=torch.Generator().manual_seed(0))
    whole = decoder.adapter.denormalise(pipe.vae, sample)
    for _ in range(5):
        decoder.start_step()
        part = decoder._cropped(sample)
        assert part.shape == (1, 4, 4, 4)
        torch.testing.assert_close(decoder.adapter.denormalise(pipe.vae, part), decoder._cropped(whole))
        assert decoder(sample).shape == (1, 3, 8, 8)


@pytest.mark.slow
def test_frames_of_a_video_share_the_window_and_the_size():
    pipe, _ = importlib.import_module("helpers.pipelines.unet_video").PIPELINES["AnimateDiffPipeline"]()
    frames = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    decoder = Decoder(pipe, "image", Decoding(resolution=0.75, crop=0.5))
    decoder.start_step()
    images = decoder(frames)
    assert images.shape == (1, 3, 3, 4, 4)  # twice the latents' side
    for i in range(3):
        torch.testing.assert_close(decoder(frames[:, :, i]), images[:, :, i])


# ---------------------------------------------------------------- memory


def kept(pipe, decoding, count=2):
    decoder = decoder_on_meta(Decoder(pipe, "image", decoding))
    return decoder_bytes(decoder, (count, 4, 32, 32))


@pytest.mark.slow
def test_memory_falls_as_documented():
    pipe = make_pipeline()
    plain = kept(pipe, Decoding()).kept
    assert kept(pipe, Decoding(resolution=0.5)).kept == pytest.approx(plain / 4, rel=0.1)
    assert kept(pipe, Decoding(crop=0.5)).kept == pytest.approx(plain / 4, rel=0.1)
    assert kept(pipe, Decoding(), count=1).kept == pytest.approx(plain / 2, rel=0.01)
    assert kept(pipe, Decoding(dtype=torch.bfloat16)).kept < 0.65 * plain  # the images stay in float32
    assert kept(pipe, Decoding(checkpoint=True)).kept < 0.5 * plain
    assert kept(pipe, Decoding(checkpoint=True)).peak < 0.8 * kept(pipe, Decoding()).peak


def test_the_decoder_is_left_as_it_was(tiny_pipeline):
    pipe = tiny_pipeline()

    def state():
        return [{k: v for k, v in vars(m).items() if k == "gradient_checkpointing"} for m in pipe.vae.modules()]

    before = state()
    during = []

    def reward(images):
        during.append(pipe.vae.decoder.gradient_checkpointing)
        raise RuntimeError("stop")

    decoder = Decoder(pipe, "image", Decoding(checkpoint=True))
    with pytest.raises(RuntimeError, match="stop"):
        reward_gradient(reward, decoder, latents(dtype=torch.float32))
    assert during == [True] and state() == before


# ---------------------------------------------------------------- what is refused


BAD = [
    ({"resolution": 0}, r"resolution must be in \(0, 1\], got 0"),
    ({"resolution": 1.5}, r"resolution must be in \(0, 1\], got 1.5"),
    ({"crop": -0.5}, r"crop must be in \(0, 1\], got -0.5"),
    ({"crop": float("nan")}, r"crop must be in \(0, 1\], got nan"),
    ({"images": 0}, "images must be at least 1, or None for all at once, got 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**options)
