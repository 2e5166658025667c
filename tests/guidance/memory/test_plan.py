"""The planner: what it chooses for a budget, and what it says about it."""

import functools
import importlib
import re

import pytest
import torch
from helpers.factories import generate, make_clip
from helpers.memory_fixtures import SIDE, VIEWS, estimate, make_guidance, make_tiny_decoder, make_wide_pipeline

from clip_guidance.guidance import CLIPGuidance, Decoding, Guidance, Region
from clip_guidance.guidance.memory import plan as memory
from clip_guidance.guidance.memory.plan import MemoryPlan, parse_size, plan_memory, readable


@pytest.fixture(scope="module")
def pipe():
    return make_wide_pipeline()


@pytest.fixture(scope="module")
def guidance():
    return make_guidance()


@pytest.fixture(autouse=True, scope="module")
def estimates():
    """Plans of the same images share what was measured: a test may make many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_Estimate", functools.cache(memory._Estimate))
        yield


# ---------------------------------------------------------------- the choice


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("tiny", [None, make_tiny_decoder()])
def test_a_larger_budget_never_gives_a_worse_setting(pipe, guidance, batch, tiny):
    plain = estimate(guidance, pipe, Decoding(), None, batch)
    plans = []
    for share in (1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.15, 0.1, 0.07):
        budget = share * plain
        try:
            plans.append(plan_memory(guidance, pipe, budget, SIDE, SIDE, batch, tiny))
        except ValueError:
            break
        assert plans[-1].bytes <= budget
    assert len(plans) >= 5
    assert plans[0].decoding == Decoding() and plans[0].chunk is None and plans[0].exact
    assert not plans[-1].exact

    def quality(plan):
        decoding = plan.decoding
        return plan.exact, decoding.resolution, decoding.crop, not decoding.checkpoint if plan.exact else True

    qualities = [quality(plan) for plan in plans]
    assert qualities == sorted(qualities, reverse=True)


@pytest.mark.slow
def test_exact_settings_come_before_approximate_ones(pipe, guidance):
    plain = estimate(guidance, pipe, Decoding(), None, 3)
    chunked = estimate(guidance, pipe, Decoding(), 1, 3)
    one = estimate(guidance, pipe, Decoding(images=1), 1, 3)
    least = estimate(guidance, pipe, Decoding(images=1, checkpoint=True), 1, 3)
    assert plain > chunked > one > least
    for budget, expected in (
        (plain, Decoding()),
        (chunked, Decoding()),
        (one, Decoding(images=1)),
        (least, Decoding(images=1, checkpoint=True)),
    ):
        plan = plan_memory(guidance, pipe, budget, SIDE, SIDE, 3, make_tiny_decoder())
        assert plan.decoding == expected and plan.exact
    assert plan_memory(guidance, pipe, least - 1, SIDE, SIDE, 3).decoding.resolution == 0.75


@pytest.mark.slow
def test_the_tiny_decoder_comes_before_a_smaller_image(pipe, guidance):
    least = estimate(guidance, pipe, Decoding(checkpoint=True), 1)
    tiny = make_tiny_decoder()
    plan = plan_memory(guidance, pipe, least - 1, SIDE, SIDE, tiny=tiny)
    assert plan.decoding.decoder is tiny and plan.decoding.resolution == 1


@pytest.mark.slow
def test_what_was_set_besides_stays(pipe):
    decoding = Decoding(dtype=torch.bfloat16, seed=3, resolution=0.5, checkpoint=True)
    guidance = CLIPGuidance(make_clip(), "x", decoding=decoding)
    assert plan_memory(guidance, pipe, "1GiB", SIDE, SIDE).decoding == Decoding(dtype=torch.bfloat16, seed=3)


@pytest.mark.slow
def test_if_nothing_fits_the_smallest_need_is_named_and_is_enough(pipe, guidance):
    with pytest.raises(
        ValueError, match="takes at least .* beside the weights, with chunk=1 and .*budget is 1 B"
    ) as caught:
        plan_memory(guidance, pipe, 1, SIDE, SIDE)
    assert "2 images" not in str(caught.value) and "1 image of 64 x 64 by StableDiffusionPipeline" in str(
        caught.value
    )
    least = re.search(r"at least ([\d.]+ \w+)", str(caught.value))[1]
    assert "resolution=0.25, crop=0.5" in str(caught.value)
    needed = parse_size(least) * 1.01  # it is rounded
    plan = plan_memory(guidance, pipe, needed, SIDE, SIDE)
    assert plan.bytes == pytest.approx(needed, rel=0.05)


@pytest.mark.slow
def test_regions_are_never_cropped(pipe):
    guidance = CLIPGuidance(make_clip(), [Region("dog", (0, 0, 0.5, 1)), "cat"], cutouts=2)
    with pytest.raises(ValueError, match=r"takes at least .*resolution=0\.5, crop=1\.0"):
        plan_memory(guidance, pipe, 1, SIDE, SIDE)


def test_latents_are_not_planned(pipe):
    with pytest.raises(ValueError, match="space='latent' decodes nothing"):
        plan_memory(Guidance(lambda x: x, space="latent"), pipe, "1GiB", SIDE, SIDE)


@pytest.mark.slow
def test_a_video_needs_its_frames():
    pipe, _ = importlib.import_module("helpers.pipelines.video").PIPELINES["WanPipeline"]()
    guidance = Guidance(lambda frames: frames.flatten(1).sum(1))
    with pytest.raises(ValueError, match=r"latents of shape \(1, 4, 8, 8\), which failed; give `frames`"):
        plan_memory(guidance, pipe, "1GiB", 32, 48)
    plan = plan_memory(guidance, pipe, "1GiB", 32, 48, frames=2)
    assert "1 video of 2 latent frames of 32 x 48 by WanPipeline" in str(plan)


# ---------------------------------------------------------------- what it says, and its use


_PLAIN = Decoding()


def words(decoding=_PLAIN, chunk=None, mode="x0"):
    """The lines of a plan for 16 views."""
    lines = str(MemoryPlan(decoding, chunk, 5 * 2**29, 4 * 2**30, "3 images", 16, mode)).splitlines()
    assert lines.pop(0) == "Guidance of 3 images: about 2.5 GiB of 4.0 GiB."
    return dict(line.split(": ", 1) for line in lines)


def test_it_says_that_nothing_has_to_change():
    assert words()["Chosen"] == "everything as it is."
    assert words()["Costs"] == "no time."
    assert words()["Gives up"] == "nothing, the gradient is exact."


def test_it_says_what_an_exact_setting_costs():
    plan = words(Decoding(images=1, checkpoint=True), 6)
    assert re.fullmatch("chunk=6, so many of the 16 .*; images=1, .*; checkpoint=True, .*", plan["Chosen"])
    assert plan["Costs"].startswith(
        "3 passes through CLIP at a guided step instead of 1; 2 more forwards of the decoder"
    )
    assert plan["Gives up"] == "nothing, the gradient is exact."
    assert words(Decoding(images=1))["Costs"] == "1 more forward of the decoder at a guided step."


def test_it_says_what_an_approximate_setting_gives_up():
    plan = words(Decoding(make_tiny_decoder(), resolution=0.5, crop=0.25))
    assert re.fullmatch("decoder=AutoencoderTiny .*; resolution=0.5, .*; crop=0.25, .*", plan["Chosen"])
    assert re.fullmatch("detail .*; detail: .* smaller .*; the whole: .*", plan["Gives up"])
    assert plan["Costs"] == "no time."


@pytest.mark.slow
def test_it_says_what_is_not_counted(pipe, guidance):
    assert "the denoiser, which is at rest" in words()["Not counted"]
    assert "mode='exact' keeps at the same time and which come on top" in words(mode="exact")["Not counted"]
    exact = CLIPGuidance(make_clip(), "x", mode="exact")
    assert "come on top" in str(plan_memory(exact, pipe, "1GiB", 32, 32))
    plan = str(plan_memory(guidance, pipe, "1GiB", SIDE, SIDE, 3))
    assert plan.startswith("Guidance of 3 images of 64 x 64 by StableDiffusionPipeline: about ")


@pytest.mark.slow
def test_an_exact_plan_steers_as_the_plain_setting(pipe):
    def steered(plan=None):
        guidance = CLIPGuidance(make_clip(), "a red apple", scale=5.0, cutouts=VIEWS)
        if plan is not None:
            assert plan.apply(guidance) is guidance
            assert guidance.decoding == plan.decoding and guidance.reward.chunk == plan.chunk == 3
        with guidance.attach(pipe):
            return generate(pipe, ["cat"] * 2, seeds=(0, 1))

    guidance = CLIPGuidance(make_clip(), "a red apple", cutouts=VIEWS)
    pixels = 8 * 4  # the tiny UNet's latents are 8 x 8
    least = estimate(guidance, pipe, Decoding(images=1, checkpoint=True), 1, 2, pixels)
    plan = plan_memory(guidance, pipe, least, pixels, pixels, batch=2)
    assert plan.decoding == Decoding(images=1, checkpoint=True)
    plain = steered()
    torch.testing.assert_close(steered(plan), plain, rtol=1e-4, atol=1e-4)
    assert not plain.equal(generate(pipe, ["cat"] * 2, seeds=(0, 1)))


SIZES = [
    ("6GiB", 6 * 1024**3),
    ("6 gib", 6 * 1024**3),
    ("1.5 MB", 1_500_000),
    ("100B", 100),
    ("2TB", 2 * 10**12),
    (4096, 4096),
    (2.5e9, 2_500_000_000),
]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["6", "GiB", "six GiB", "-1GiB", "6 GiB free", 0, -5, float("inf"), float("nan"), "0B"]
)
def test_other_sizes_are_refused(text):
    message = f"expected a size such as '6GiB', '500 MB' or a positive number of bytes, got {re.escape(repr(text))}"
    with pytest.raises(ValueError, match=message):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"), [(1023, "1023 B"), (1024, "1.0 KiB"), (3 * 2**29, "1.5 GiB"), (2**50, "1024.0 TiB")]
)
def test_sizes_are_written(size, text):
    assert readable(size) == text
