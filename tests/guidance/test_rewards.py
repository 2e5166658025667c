"""Rewards: CLIP's logit over cutouts and prompts, and weighted sums."""

import pytest
import torch
from helpers.factories import generate
from torch import nn

from clip_guidance.guidance import CLIPReward, Cutouts, Guidance, WeightedRewards
from clip_guidance.guidance.engine.gradient import gradient_at_images


def random_images(count, size=(16, 12), seed=0):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def gradient(reward, images):
    return gradient_at_images(reward, images.clone()).gradient


# ---------------------------------------------------------------- CLIP's logit


def logits(clip, images, prompts):
    """CLIP's logits by their definition."""
    image_embeds = clip.image_embeds(clip.image_processor.differentiable(images.to(clip.device)))
    return clip.logit_scale.exp() * (image_embeds * clip.encode_text(prompts)).sum(-1)


def test_the_reward_is_clips_logit(clip):
    images = random_images(2)
    torch.testing.assert_close(CLIPReward(clip, "dog")(images), logits(clip, images, ["dog", "dog"]))
    torch.testing.assert_close(CLIPReward(clip, ["dog", "cat"])(images), logits(clip, images, ["dog", "cat"]))


def test_each_prompt_serves_consecutive_images(clip):
    images = random_images(4)
    expected = logits(clip, images, ["dog", "dog", "cat", "cat"])
    torch.testing.assert_close(CLIPReward(clip, ["dog", "cat"])(images), expected)


def test_prompts_that_do_not_fit_the_batch_are_refused(clip):
    with pytest.raises(ValueError, match="3 targets cannot be shared out evenly among a batch of 4 images"):
        CLIPReward(clip, ["a", "b", "c"])(random_images(4))


@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (3, 8, 8)])
def test_what_is_no_image_is_refused(clip, shape):
    with pytest.raises(ValueError, match=r"images \(B, 3, H, W\) in \[0, 1\], got .*space='latent'"):
        CLIPReward(clip, "dog")(torch.zeros(shape))


def test_the_reward_averages_over_the_cutouts(clip):
    images = random_images(2)
    views = list(Cutouts(4, seed=7)(images))
    expected = torch.stack([logits(clip, view, ["dog", "dog"]) for view in views]).mean(0)
    torch.testing.assert_close(CLIPReward(clip, "dog", Cutouts(4, seed=7))(images), expected)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 9])
def test_chunks_change_neither_the_reward_nor_its_gradient(clip, chunk):
    images = random_images(2)
    whole, divided = (CLIPReward(clip, ["dog", "cat"], Cutouts(5, seed=2), each) for each in (None, chunk))
    parts = list(divided.parts(images))
    assert len(parts) == -(-5 // chunk)
    divided.reset()
    expected = whole(images)
    torch.testing.assert_close(divided(images), expected)
    for reward in (whole, divided):
        reward.reset()
    torch.testing.assert_close(gradient(divided, images), gradient(whole, images))


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_holds_a_view(clip, chunk):
    with pytest.raises(ValueError, match=f"chunk must be at least 1 view, or None for all, got {chunk}"):
        CLIPReward(clip, "dog", chunk=chunk)


# ---------------------------------------------------------------- several prompts with weights

WEIGHTS = {"dog": 1.0, "a photo": -0.5, "cat": 2.0}


def test_weighted_prompts_are_the_weighted_sum_of_their_rewards(clip):
    images = random_images(3)
    mapped = CLIPReward(clip, WEIGHTS, Cutouts(3))
    apart = [(weight, CLIPReward(clip, text, Cutouts(3))) for text, weight in WEIGHTS.items()]
    expected = sum(weight * reward(images) for weight, reward in apart)
    torch.testing.assert_close(mapped(images), expected)
    for reward in [mapped, *(reward for _, reward in apart)]:
        reward.reset()
    torch.testing.assert_close(gradient(mapped, images), gradient(WeightedRewards(apart), images))


def test_a_weight_multiplies_the_logit_of_its_prompt(clip):
    images = random_images(2)
    torch.testing.assert_close(CLIPReward(clip, {"dog": 1})(images), CLIPReward(clip, "dog")(images))
    torch.testing.assert_close(CLIPReward(clip, {"dog": -2})(images), -2 * CLIPReward(clip, "dog")(images))
    assert CLIPReward(clip, {"dog": 0.0})(images).eq(0).all()


BAD_MAPPINGS = [
    ({}, ValueError, "the target is empty; expected at least one text or image"),
    ({"": 1.0}, ValueError, "entry 0 of the target is empty"),
    ({"dog": 1.0, 3: 1.0}, TypeError, "entry 1 of the target must be a text, .*; got int 3"),
    ({"dog": "1"}, TypeError, "the weight of entry 0 of the target, 'dog', is a str; expected a number"),
    ({"dog": None}, TypeError, "the weight of entry 0 of the target, 'dog', is a NoneType; expected a number"),
    ({"dog": 1.0, "cat": float("nan")}, ValueError, "entry 1 of the target, 'cat', must be finite, got nan"),
    ([("cat", float("inf"))], ValueError, "the weight of entry 0 of the target, 'cat', must be finite, got inf"),
    ([{"dog": 1}, {"cat": float("inf")}], ValueError, "weight of entry 0 of target 1, 'cat', must be finite, got inf"),
]


@pytest.mark.parametrize(("target", "error", "message"), BAD_MAPPINGS)
def test_bad_weights_of_targets_are_refused(clip, target, error, message):
    with pytest.raises(error, match=message):
        CLIPReward(clip, target)


# ---------------------------------------------------------------- weighted sums of rewards


def brightness(images):
    return images.flatten(1).mean(1)


class Contrast(nn.Module):
    """A network with a weight and a state."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))
        self.resets = 0

    def forward(self, images):
        return self.weight * (images - 0.5).square().flatten(1).mean(1)

    def reset(self):
        self.resets += 1


def test_a_weighted_sum_is_the_sum_of_its_weighted_rewards(clip):
    images = random_images(2)
    network = Contrast()
    reward = WeightedRewards([(0.5, brightness), (-2, network), (1.5, CLIPReward(clip, "dog", Cutouts(4), chunk=3))])
    expected = 0.5 * brightness(images) - 2 * network(images) + 1.5 * CLIPReward(clip, "dog", Cutouts(4))(images)
    parts = list(reward.parts(images))
    assert len(parts) == 4  # CLIP's in two chunks
    torch.testing.assert_close(sum(parts), expected)
    reward.reset()
    torch.testing.assert_close(reward(images), expected)
    leaf = images.clone().requires_grad_()
    plain = torch.autograd.grad((0.5 * brightness(leaf) - 2 * network(leaf)).sum(), leaf)[0]
    plain += 1.5 * gradient(CLIPReward(clip, "dog", Cutouts(4)), images)
    reward.reset()
    torch.testing.assert_close(gradient(reward, images), plain)


def test_sums_of_sums():
    images = random_images(2)
    inner = WeightedRewards([(2.0, brightness), (1.0, Contrast())])
    outer = WeightedRewards([(3.0, inner), (-1.0, brightness)])
    assert len(list(outer.parts(images))) == 3
    torch.testing.assert_close(outer(images), 3 * inner(images) - brightness(images))


def test_the_networks_of_a_sum_belong_to_it(clip):
    network = Contrast()
    reward = WeightedRewards([(1.0, brightness), (2.0, network), (3.0, network)])
    assert [name for name, _ in reward.named_parameters()] == ["networks.1.weight"]
    assert reward.rewards == [(1.0, brightness), (2.0, network), (3.0, network)]
    reward.to(torch.float64)
    assert network.weight.dtype == torch.float64


def test_every_run_resets_the_rewards_of_a_sum(tiny_pipeline, clip):
    network = Contrast()
    guidance = Guidance(
        WeightedRewards([(1.0, CLIPReward(clip, "dog", Cutouts(3))), (1.0, network), (1.0, brightness)])
    )
    pipe = tiny_pipeline()
    with guidance.attach(pipe):
        first, second = generate(pipe), generate(pipe)
    assert first.equal(second) and network.resets == 2


def test_weights_are_not_trained_by_the_way(tiny_pipeline):
    network, pipe = Contrast(), tiny_pipeline()
    with Guidance(WeightedRewards([(1.0, network)])).attach(pipe):
        assert not network.weight.requires_grad
        generate(pipe)
    assert network.weight.requires_grad and network.weight.grad is None


BAD_SUMS = [
    ([], ValueError, r"expected at least one \(weight, reward\), got none"),
    ([(1.0, brightness), ("2", brightness)], TypeError, "the weight of reward 1 is a str; expected a number"),
    ([(float("nan"), brightness)], ValueError, "the weight of reward 0 must be finite, got nan"),
    ([(1.0, "brightness")], TypeError, "reward 0 must be callable, got str"),
]


@pytest.mark.parametrize(("rewards", "error", "message"), BAD_SUMS)
def test_bad_sums_are_refused(rewards, error, message):
    with pytest.raises(error, match=message):
        WeightedRewards(rewards)


def test_a_part_that_is_no_number_an_image_is_refused():
    reward = WeightedRewards([(1.0, brightness), (1.0, lambda images: images.mean())])
    with pytest.raises(ValueError, match=r"must return one number per sample, shape \(2,\), got \(\)"):
        gradient_at_images(reward, random_images(2))
