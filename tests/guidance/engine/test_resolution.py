"""decoding="auto": latents are shrunk as far as the reward reads, where that is checked to change little."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers.decoding import contrast, latents, with_vae
from helpers.factories import generate, make_clip
from torch import nn

import clip_guidance as cg
from clip_guidance.clip.image_processor import ImageProcessor
from clip_guidance.guidance import CLIPGuidance, CLIPReward, Cutouts, Decoding, Guidance, Region, WeightedRewards
from clip_guidance.guidance.engine import resolution
from clip_guidance.guidance.engine.decoder import Decoder
from clip_guidance.guidance.engine.gradient import reward_gradient
from clip_guidance.guidance.reading import Reading


class Pooling(nn.Module):
    """An autoencoder that a smaller decode suits: means of 2 x 2 pixels, and the pixels repeated.

    ``sign`` is what images of less than ``side`` latents are multiplied by: at -1 none of them suits.
    """

    def __init__(self, sign=1.0, side=16):
        super().__init__()
        self.config = SimpleNamespace(scaling_factor=5.0, latent_channels=4)  # few pixels are clipped
        self.sign, self.side = nn.Parameter(torch.tensor(sign)), side
        self.decoded, self.device = [], torch.device("cpu")

    def encode(self, pixels, return_dict=False):
        means = F.avg_pool2d(pixels, 2)
        return (torch.cat([means, means[:, :1]], 1),)

    def decode(self, z, return_dict=False):
        self.decoded.append(z.shape[-1])
        images = z[:, :3].repeat_interleave(2, -1).repeat_interleave(2, -2)
        return (images if z.shape[-1] >= self.side else self.sign * images,)


class Coarse(nn.Module):
    """A reward that reads images of ``side`` pixels, of which it sees the colours of 4 x 4 fields."""

    def __init__(self, side=16, smallest=1.0):
        super().__init__()
        self.processor, self.smallest = ImageProcessor(side), smallest

    def forward(self, images):
        return contrast(self.processor.differentiable(images))

    def embed(self, images):
        return F.normalize(F.adaptive_avg_pool2d(images - 0.5, 4).flatten(1), dim=1)

    def readings(self):
        return [Reading(self, self.processor.resized, self.embed, self.smallest)]


@pytest.fixture
def pooled(tiny_pipeline):
    """(sign, dtype) -> a pipeline whose decoder is :class:`Pooling`."""

    def make(sign=1.0, dtype=torch.float64):
        return with_vae(tiny_pipeline(dtype=dtype), Pooling(sign).to(dtype))

    return make


def fitted(pipe, reward, shape=(16, 16), decoding="auto"):
    decoder = Decoder(pipe, "image", decoding)
    decoder.fit(reward, latents(1, shape, pipe.vae.sign.dtype))
    return decoder


def test_what_suits_a_smaller_decode_is_decoded_no_larger_than_the_reward_reads(pooled):
    pipe = pooled()
    decoder = fitted(pipe, Coarse(16))
    assert decoder.choice.resolution == 0.5 and 0.98 <= decoder.choice.cosine <= 1
    smooth = F.interpolate(latents(1, (4, 4)), (16, 16), mode="bicubic")
    smooth[:, 3] = smooth[:, 0]  # as the encoder has it
    found, whole = decoder(smooth), Decoder(pipe, "image")(smooth)
    assert found.shape == (1, 3, 16, 16) and whole.shape == (1, 3, 32, 32)
    assert (F.avg_pool2d(found, 2) - F.avg_pool2d(whole, 4)).square().mean() < 0.01 * whole.var()


def test_what_does_not_suit_it_is_decoded_in_full_and_that_is_said(pooled):
    decoder = fitted(pooled(sign=-1.0), Coarse(16))
    assert decoder.choice.resolution == 1 and decoder.choice.cosine < 0.98
    assert decoder.choice.reason == "smaller, an image looks another to the reward: cosine below 0.98"
    assert decoder(latents(1, (16, 16))).shape == (1, 3, 32, 32)


def test_a_crop_may_need_more_than_the_whole(pooled, monkeypatch):
    cosines = iter([0.9, 0.99])  # at the size of the whole image, and of a crop of 19 of 32 pixels
    monkeypatch.setattr(resolution, "_least_cosine", lambda *_: next(cosines))
    choice = fitted(pooled(), Coarse(16, smallest=0.6)).choice
    assert (choice.resolution, choice.cosine) == (16 / 19, 0.99)


def test_the_gradient_agrees_with_finite_differences(pooled):
    pipe, reward, step = pooled(), Coarse(16), 1e-5
    x0, direction = (latents(2, (16, 16), seed=seed) for seed in (0, 1))
    decoder = fitted(pipe, reward)
    found = reward_gradient(reward, decoder, x0)
    assert decoder.choice.resolution == 0.5
    with torch.no_grad():
        higher, lower = (reward(decoder(x0 + sign * step * direction)) for sign in (1, -1))
    expected = (higher - lower) / (2 * step)
    torch.testing.assert_close((found.gradient * direction).flatten(1).sum(1), expected, rtol=1e-5, atol=1e-8)


def test_no_image_depends_on_its_neighbours_and_frames_are_images(pooled):
    reward, x0 = Coarse(16), latents(3, (16, 16))
    decoder = fitted(pooled(), reward)
    together = reward_gradient(reward, decoder, x0).gradient
    for i in range(3):
        torch.testing.assert_close(reward_gradient(reward, decoder, x0[i : i + 1]).gradient, together[i : i + 1])
    shrink = decoder._fit[1].shrink
    video = torch.stack([x0, -x0], 2)
    assert shrink(video).equal(torch.stack([shrink(x0), shrink(-x0)], 2))


# ---------------------------------------------------------------- the same call draws the same image


def test_an_image_is_the_same_whether_or_not_the_check_ran_before(pooled, monkeypatch):
    pipe, reward, state = pooled(dtype=torch.float32), Coarse(16), torch.get_rng_state()
    options = {"steps": 2, "height": 32, "width": 32}

    def draw(decoding, **more):
        with Guidance(reward, 5.0, decoding=decoding).attach(pipe) as guidance:
            return generate(pipe, **options, **more), guidance.report.decoding

    first, told = draw("auto")
    assert told.resolution == 0.5 and not first.equal(draw(None)[0]) and draw(None)[1] is None
    ran = len(pipe.vae.decoded)
    again, told_again = draw("auto")
    assert again.equal(first) and told_again == told
    assert pipe.vae.decoded[ran:] == [4, 8, 8]  # by how much it enlarges, and two steps
    monkeypatch.setattr(resolution, "_kept", {})
    assert draw("auto")[0].equal(first)
    pair = draw("auto", prompt=["cat", "cat"], seeds=(1, 0))[0]
    torch.testing.assert_close(pair[1:], first)  # neighbours change nothing
    assert torch.get_rng_state().equal(state)


def test_weights_that_have_changed_are_checked_again(pooled):
    pipe, reward = pooled(), Coarse(16)
    assert fitted(pipe, reward).choice.resolution == 0.5
    pipe.vae.sign.data.mul_(-1)  # which torch does not count as a change
    assert fitted(pipe, reward).choice.resolution == 1


def test_a_decoder_that_does_not_suit_draws_what_it_drew_in_full(pooled):
    pipe = pooled(sign=-1.0, dtype=torch.float32)

    def draw(decoding):
        with Guidance(Coarse(16), 5.0, decoding=decoding).attach(pipe):
            return generate(pipe, steps=2, height=32, width=32)

    assert draw("auto").equal(draw(None))


@pytest.mark.slow
def test_the_packaged_pipeline_draws_what_it_drew_in_full():
    pipe = cg.load_pipeline("emoji")
    pipe.set_progress_bar_config(disable=True)

    def draw(decoding):
        with CLIPGuidance("emoji", "a red apple", 10.0, decoding=decoding).attach(pipe) as guidance:
            return generate(pipe, "an apple", steps=1), guidance.report.decoding

    found, told = draw("auto")
    assert told.reason == "the image is no larger than what the reward reads"
    assert found.equal(draw(None)[0])


# ---------------------------------------------------------------- what is read


def test_the_size_that_a_clip_reads_is_its_own():
    clip = make_clip()
    side = clip.image_processor.image_size
    (whole,) = CLIPReward(clip, "a cat").readings()
    assert whole.shares(2 * side, 3 * side) == [0.5]
    (cut,) = CLIPReward(clip, "a cat", Cutouts(3, smallest=0.5)).readings()
    assert cut.shares(4 * side, 5 * side) == [0.25, 0.5]
    image = torch.rand(1, 3, 2 * side, 2 * side, generator=torch.Generator().manual_seed(0))
    middle = image[..., side // 2 : side // 2 + side, side // 2 : side // 2 + side]
    expected = [clip.image_embeds(clip.image_processor.differentiable(view)) for view in (image, middle)]
    torch.testing.assert_close(cut.embeds(image), torch.cat(expected))


def test_of_several_rewards_the_largest_reading_counts(pooled):
    both = WeightedRewards([(1.0, Coarse(8)), (0.5, Coarse(16))])
    assert fitted(pooled(), both).choice.resolution == 0.5
    assert fitted(pooled(), WeightedRewards([(1.0, Coarse(8)), (0.5, contrast)])).choice.cosine is None


UNKNOWN = "it is not known how large an image the reward reads"
FULL = [
    (contrast, UNKNOWN),
    (lambda: CLIPReward(make_clip(), [Region("a cat", (0, 0, 0.5, 1))]), UNKNOWN),
    (Coarse(32), "the image is no larger than what the reward reads"),
]


@pytest.mark.parametrize(("reward", "reason"), FULL)
def test_the_rest_is_decoded_in_full(pooled, reward, reason):
    reward = reward() if getattr(reward, "__name__", "") == "<lambda>" else reward
    decoder = fitted(pooled(), reward)
    assert (decoder.choice.resolution, decoder.choice.cosine, decoder.choice.reason) == (1, None, reason)


def test_an_encoder_that_fails_costs_the_smaller_decode_alone(pooled, monkeypatch):
    pipe = pooled()
    monkeypatch.setattr(Pooling, "encode", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no room")))
    assert fitted(pipe, Coarse(16)).choice.reason == "a smaller decode could not be checked: RuntimeError: no room"
    monkeypatch.delattr(Pooling, "encode")
    assert fitted(pipe, Coarse(16)).choice.reason.startswith("there is no encoder")


def test_it_goes_with_the_other_settings(pooled):
    decoder = fitted(pooled(), Coarse(16), (32, 32), Decoding(resolution="auto", crop=0.5, images=1))
    assert decoder.choice.resolution == 0.5  # of a window of 32 pixels


BAD = [
    ({"decoding": "full"}, ValueError, "decoding must be 'auto', a Decoding, or None, got 'full'"),
    ({"decoding": 0.5}, TypeError, "decoding must be 'auto', a Decoding, or None, got float"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_names_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Guidance(contrast, **options)
    with pytest.raises(ValueError, match=r"resolution must be in \(0, 1\], or 'auto', got 'small'"):
        Decoding(resolution="small")
