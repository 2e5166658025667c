import pytest
import torch
from tiny_pipeline import generate

from clip_guidance.guidance import CLIPGuidance, Guidance
from clip_guidance.guidance.cutouts import Cutouts
from clip_guidance.guidance.rewards import CLIPReward

modes = pytest.mark.parametrize("mode", ["x0", "exact"])


def pictures(count, size=(16, 12), seed=0):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- the reward


def logits(clip, images, prompts):
    """CLIP's logits by their definition."""
    image_embeds = clip.image_embeds(clip.image_processor.differentiable(images.to(clip.device)))
    return clip.logit_scale.exp() * (image_embeds * clip.encode_text(prompts)).sum(-1)


def test_the_reward_is_clips_logit(clip):
    images = pictures(2)
    torch.testing.assert_close(CLIPReward(clip, "dog")(images), logits(clip, images, ["dog", "dog"]))
    torch.testing.assert_close(CLIPReward(clip, ["dog", "cat"])(images), logits(clip, images, ["dog", "cat"]))


def test_each_prompt_serves_consecutive_pictures(clip):
    images = pictures(4)
    expected = logits(clip, images, ["dog", "dog", "cat", "cat"])
    torch.testing.assert_close(CLIPReward(clip, ["dog", "cat"])(images), expected)


def test_prompts_that_do_not_fit_the_batch_are_refused(clip):
    with pytest.raises(ValueError, match="3 prompts cannot be shared out evenly among a batch of 4 pictures"):
        CLIPReward(clip, ["a", "b", "c"])(pictures(4))


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (3, 8, 8)])
def test_what_is_no_picture_is_refused(clip, shape):
    with pytest.raises(ValueError, match=r"pictures \(B, 3, H, W\) in \[0, 1\], got .*space='latent'"):
        CLIPReward(clip, "dog")(torch.zeros(shape))


BAD_PROMPTS = [
    ("", ValueError, "prompt 0 is empty"),
    (["dog", " \n"], ValueError, "prompt 1 is empty"),
    ([], ValueError, "empty list"),
    (["dog", 3], TypeError, "prompt 1 is a int"),
]


@pytest.mark.parametrize(("prompt", "error", "message"), BAD_PROMPTS)
def test_bad_prompts_are_refused(clip, prompt, error, message):
    with pytest.raises(error, match=message):
        CLIPGuidance(clip, prompt)


def test_the_text_is_encoded_once(clip, tiny_pipeline):
    guidance = CLIPGuidance(clip, ("dog", "cat"), cutouts=3)
    pipe = tiny_pipeline()
    for _ in range(2):
        with guidance.attach(pipe):
            generate(pipe, ["a", "b"], seeds=(0, 1))
    assert clip.encoded_texts == ["dog", "cat"]


def test_the_reward_averages_over_the_cutouts(clip):
    images = pictures(2)
    views = list(Cutouts(4, seed=7)(images))
    expected = torch.stack([logits(clip, view, ["dog", "dog"]) for view in views]).mean(0)
    torch.testing.assert_close(CLIPReward(clip, "dog", Cutouts(4, seed=7))(images), expected)


# ---------------------------------------------------------------- cutouts


def test_the_first_cutout_is_the_whole_picture():
    images = pictures(2)
    (view,) = Cutouts()(images)
    assert view is images
    assert next(iter(Cutouts(5)(images))) is images


def test_the_others_are_square_parts_of_the_picture_or_its_mirror_image():
    images = pictures(1, size=(20, 12))
    sizes, mirrored = set(), set()
    for view in list(Cutouts(40)(images))[1:]:
        size = view.shape[-1]
        assert view.shape == (1, 3, size, size) and 6 <= size <= 12
        windows = images.unfold(2, size, 1).unfold(3, size, 1)[0].permute(1, 2, 0, 3, 4).flatten(0, 1)
        found = [any(w.equal(v) for w in windows) for v in (view[0], view[0].flip(-1))]
        assert any(found)
        sizes.add(size)
        mirrored.add(found[1])
    assert len(sizes) > 4 and mirrored == {True, False}


def test_the_draw_is_the_same_for_every_picture_of_a_batch():
    images = pictures(3)
    batch = list(Cutouts(5)(images))
    for i in range(3):
        alone = list(Cutouts(5)(images[i : i + 1]))
        assert all(a.equal(b[i : i + 1]) for a, b in zip(alone, batch, strict=True))


def test_draws_go_on_until_reset_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    cutouts, images = Cutouts(6, seed=3), pictures(1)
    first, second = list(cutouts(images)), list(cutouts(images))
    cutouts.reset()
    again = list(cutouts(images))
    assert not all(a.shape == b.shape and a.equal(b) for a, b in zip(first, second, strict=True))
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert torch.get_rng_state().equal(state)


def test_cutouts_work_on_a_picture_of_one_pixel_and_pass_gradients():
    images = pictures(1, size=(1, 1)).requires_grad_()
    total = sum(view.sum() for view in Cutouts(3)(images))
    assert torch.autograd.grad(total, images)[0].tolist() == [[[[3.0]]] * 3]


@pytest.mark.parametrize("count", [0, -2])
def test_there_is_at_least_one_cutout(clip, count):
    with pytest.raises(ValueError, match=f"at least 1 .* got {count}"):
        CLIPGuidance(clip, "dog", cutouts=count)


# ---------------------------------------------------------------- steering the tiny pipeline


def clip_logit(clip, images):
    with torch.no_grad():
        return logits(clip, images, ["dog"] * len(images)).mean().item()


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm"])
@modes
def test_the_reward_rises_with_the_scale(tiny_pipeline, clip, mode, scheduler):
    pipe = tiny_pipeline(scheduler)
    rewards = []
    for scale in (-1.0, 0.0, 1.0, 2.0):
        with CLIPGuidance(clip, "dog", scale, mode=mode).attach(pipe):
            rewards.append(clip_logit(clip, generate(pipe, "cat", seeds=(0, 1), steps=5, output_type="pt",
                                                     num_images_per_prompt=2)))  # fmt: skip
    assert rewards == sorted(rewards) and len(set(rewards)) == 4


def test_the_report_shows_the_rewards_of_the_run(tiny_pipeline, clip):
    pipe, guidance = tiny_pipeline(), CLIPGuidance(clip, "dog", scale=2.0)
    with guidance.attach(pipe) as attached:
        images = generate(pipe, seeds=(0, 1), num_images_per_prompt=2, steps=6, output_type="pt")
    assert attached is guidance
    curve = torch.stack(guidance.report.rewards)
    assert curve.shape == (6, 2)
    assert not curve.requires_grad
    assert curve[-1].mean().item() < clip_logit(clip, images)  # it is taken before the step's own shift


def test_seed_chooses_the_cutouts_and_nothing_else(tiny_pipeline, clip):
    pipe = tiny_pipeline()

    def run(**options):
        with CLIPGuidance(clip, "dog", **options).attach(pipe):
            return generate(pipe)

    assert run(cutouts=3, seed=1).equal(run(cutouts=3, seed=1))
    assert not run(cutouts=3, seed=1).equal(run(cutouts=3, seed=2))
    assert run(seed=1).equal(run(seed=2))


def test_clip_guidance_is_guidance_with_clips_reward(tiny_pipeline, clip):
    pipe = tiny_pipeline()
    options = {"scale": 2.0, "mode": "exact", "start": 0.2, "stop": 0.9, "every": 2, "data_variance": 0.5}
    with CLIPGuidance(clip, "dog", **options).attach(pipe):
        expected = generate(pipe)
    with Guidance(CLIPReward(clip, "dog"), **options).attach(pipe):
        assert generate(pipe).equal(expected)


# ---------------------------------------------------------------- arguments


BAD_ARGUMENTS = [
    ({"scale": float("nan")}, "scale must be finite, got nan"),
    ({"scale": float("inf")}, "scale must be finite, got inf"),
    ({"mode": "dps"}, "mode must be one of x0, exact, got 'dps'"),
    ({"start": -0.1}, "0 <= start < stop <= 1, got start=-0.1, stop=1.0"),
    ({"stop": 1.5}, "got start=0.0, stop=1.5"),
    ({"start": 0.5, "stop": 0.5}, "got start=0.5, stop=0.5"),
    ({"every": 0}, "every must be a whole number of steps, at least 1, got 0"),
    ({"every": 1.5}, "every must be a whole number"),
    ({"space": "pixel"}, "space must be one of image, latent, got 'pixel'"),
    ({"data_variance": 0.0}, "data_variance must be positive and finite, got 0.0"),
    ({"data_variance": float("inf")}, "data_variance must be positive and finite"),
]


@pytest.mark.parametrize(("options", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused(clip, options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(lambda x: x, **options)
    with pytest.raises(ValueError, match=message):
        CLIPGuidance(clip, "dog", **options)


def test_a_reward_is_callable():
    with pytest.raises(TypeError, match="reward must be callable, got str"):
        Guidance("a red apple")


def test_the_repr_is_one_line(clip):
    assert repr(CLIPGuidance(clip, "dog", 2.0)) == (
        "CLIPGuidance(scale=2.0, mode='x0', start=0.0, stop=1.0, every=1, space='image', data_variance=None, "
        "schedule=None, cap=None, decoding=None)"
    )
