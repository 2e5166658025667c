"""A few frames of a video: which are chosen, what is decoded for them, and that they are the whole video's."""

import itertools

import pytest
import torch
from diffusers import AutoencoderKLWan
from helpers.factories import make_pipeline
from helpers.pipeline_zoo import built, redness, run, unguided

from clip_guidance.guidance import Decoding, Guidance
from clip_guidance.guidance.adapters.frames import alone, frame_rule, spread, up_to_last, whole
from clip_guidance.guidance.engine.decoder import Decoder
from clip_guidance.guidance.engine.gradient import reward_gradient

# ---------------------------------------------------------------- which


def test_frames_are_evenly_spread():
    assert spread(4, 21) == [2, 7, 13, 18]
    for wanted, count in itertools.product(range(1, 8), range(1, 25)):
        chosen = spread(wanted, count)
        assert len(chosen) == min(wanted, count) and chosen == sorted(set(chosen))
        mirrored = [count - 1 - i for i in reversed(chosen)]
        assert all(abs(a - b) <= 1 for a, b in zip(chosen, mirrored, strict=True))
        gaps = [b - a for a, b in itertools.pairwise(chosen)]
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_frames_are_counted_from_either_end():
    assert spread((-1, 0, 20), 21) == [0, 20]
    with pytest.raises(ValueError, match=r"frames=\(3, 21\) chooses latent frame 21 of a video that has 21"):
        spread((3, 21), 21)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_causal_decoder_takes_whole_chunks_up_to_the_last_frame(chunk):
    for count in range(1, 12):
        first = min(count, chunk + count % chunk)  # what is left over belongs to the first chunk
        ends = [*range(first, count, chunk), count]
        for last in range(count):
            decoded = up_to_last([last], count, chunk)
            assert list(decoded) == list(range(min(end for end in ends if end > last)))


def test_the_rule_is_that_of_the_decoders_class():
    subclass = type("Mine", (AutoencoderKLWan,), {})
    assert frame_rule(subclass.__new__(subclass)) is up_to_last
    assert frame_rule(make_pipeline().vae) is alone
    assert frame_rule(torch.nn.Identity()) is whole


# ---------------------------------------------------------------- what

#: A pipeline of each decoder, and the channels of its latents.
DECODERS = {
    "WanPipeline": 4,
    "AnimateDiffPipeline": 4,
    "CogVideoXPipeline": 4,
    "HunyuanVideoPipeline": 4,
    "HunyuanVideo15Pipeline": 4,
    "LTXPipeline": 4,
    "MochiPipeline": 12,
    "EasyAnimatePipeline": 4,
    "LattePipeline + temporal decoder": 4,
    "StableVideoDiffusionPipeline": 4,
}


@pytest.mark.parametrize("count", [pytest.param(4, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("key", [pytest.param(k, marks=[pytest.mark.slow] * (k != "WanPipeline")) for k in DECODERS])
def test_a_few_frames_are_those_of_the_whole_video(key, count):
    pipe, _ = built(key)
    latents = torch.randn(1, DECODERS[key], count, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        video = Decoder(pipe, "image").decode(latents)
        for frames in (1, 2, (1,), (0, -1), count):
            few = Decoder(pipe, "image", Decoding(frames=frames)).decode(latents)
            chosen = spread(frames, count)
            assert few.shape == (*video.shape[:2], len(chosen), *video.shape[3:])
            distance = (few[:, :, :, None] - video[:, :, None]).abs().amax((0, 1, 4, 5))
            nearest = distance.argmin(1).tolist()
            assert distance.amin(1).max() < 1e-5 and nearest == sorted(set(nearest))
            # Each stands at its place in time, give or take the frames that one latent decodes to.
            share = video.shape[2] / count
            assert all(abs(at - (i + 0.5) * share) <= share for i, at in zip(chosen, nearest, strict=True))


def test_a_reward_of_a_few_frames_is_their_mean():
    pipe, _ = built("AnimateDiffPipeline")
    x0 = torch.randn(2, 4, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    decoder = Decoder(pipe, "image", Decoding(frames=2, images=1))
    found = reward_gradient(redness, decoder, x0)
    with torch.no_grad():
        frames = decoder.decode(x0).transpose(1, 2)
    expected = redness(frames.flatten(0, 1)).unflatten(0, (2, 2)).mean(1)
    torch.testing.assert_close(found.rewards, expected)
    touched = found.gradient.ne(0).any(4).any(3).any(1)
    assert touched.tolist() == [[False, True, False, True, False]] * 2


@pytest.mark.slow
def test_a_video_is_guided_by_a_few_of_its_frames():
    pipe, _ = built("WanPipeline")
    with Guidance(redness, scale=100.0, decoding=Decoding(frames=(-1,))).attach(pipe):
        guided = run("WanPipeline")
    assert redness(guided[0, -1:]) > redness(unguided("WanPipeline")[0, -1:]) + 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("key", ["TextToVideoSDPipeline", "I2VGenXLPipeline"])
def test_frames_that_the_scheduler_takes_one_by_one_are_one_video(key):
    pipe, inputs = built(key)
    with Guidance(redness, scale=[1.0]).attach(pipe) as guidance:
        run(key)
    assert [len(rewards) for rewards in guidance.report.rewards] == [1] * inputs["num_inference_steps"]
    torch.testing.assert_close(guidance.report.rewards[-1], redness(run_last(key, pipe)).mean()[None])


def run_last(key, pipe):
    """All frames that the reward reads at the last step."""
    seen = []

    def reward(frames):
        seen.append(frames.detach())
        return redness(frames)

    with Guidance(reward, scale=[1.0]).attach(pipe):
        run(key)
    return seen[-1]


@pytest.mark.slow
def test_a_gradient_of_more_frames_is_not_used_again_for_fewer():
    pipe, _ = built("ChronoEditPipeline + reasoning")  # it drops its reasoning after the second of three steps
    with Guidance(redness, every=3).attach(pipe) as guidance:
        assert run("ChronoEditPipeline + reasoning").isfinite().all()
    assert guidance.report.steps == [0, 2]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("frames", "error", "message"), [
    (0, ValueError, "frames must be at least 1, positions of latent frames, or None for all, got 0"),
    ((), ValueError, "frames must name at least one latent frame, got none"),
    ((0.5,), ValueError, "frames must be positions of latent frames, got 0.5"),
    ("all", TypeError, "frames must be a number, got str"),
])  # fmt: skip
def test_frames_are_checked(frames, error, message):
    with pytest.raises(error, match=message):
        Decoding(frames=frames)


def test_frames_of_an_image_are_refused_before_anything_changes():
    pipe = make_pipeline()
    with pytest.raises(ValueError, match="frames=2 chooses frames of a video; StableDiffusionPipeline makes none"):
        Guidance(redness, decoding=Decoding(frames=2)).attach(pipe)
    assert "step" not in vars(pipe.scheduler)
