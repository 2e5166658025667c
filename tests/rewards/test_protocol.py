"""Rewards in each of their three forms, as judges and as what steers; and what is none of them."""

import functools

import numpy as np
import pytest
import torch
from helpers.factories import TEXTS, make_clip
from PIL import Image
from torch import nn

import clip_guidance as cg
from clip_guidance.guidance import CLIPReward
from clip_guidance.guidance.engine.gradient import gradient_at_images
from clip_guidance.rewards import RewardError, as_judge, as_steering
from clip_guidance.rewards.clip_rewards import AestheticReward, PreferenceReward


def redness(images):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


class Lengths:
    """Form (b): the brightness of an image times the length of its prompt."""

    def score(self, images, prompts):
        assert images.shape[1] == 3 and len(prompts) == len(images) and images.max() <= 1
        return torch.tensor([float(len(prompt)) for prompt in prompts]) * images.mean((1, 2, 3))


def drawn(*sizes):
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def tensors_of(images):
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])


IMAGES = drawn((8, 8), (8, 8), (8, 8), (8, 8))


@pytest.mark.parametrize("given", [IMAGES, tensors_of(IMAGES), list(tensors_of(IMAGES)), [np.array(x) for x in IMAGES]])
def test_each_form_judges_images_of_every_kind(given):
    tensors = tensors_of(IMAGES)
    lengths = torch.tensor([5.0, 5.0, 8.0, 8.0])
    means = tensors.mean((1, 2, 3))
    of_pil = as_judge(lambda images: [float(np.asarray(image).mean()) for image in images])
    cases = {
        "a": (as_judge(redness), redness(tensors)),
        "a, with arguments": (as_judge(functools.partial(torch.mean, dim=(1, 2, 3))), means),
        "a, of one column": (as_judge(lambda images: images.mean((1, 2, 3))[:, None]), means),
        "a, a network": (as_judge(nn.Sequential(nn.Flatten(), nn.LazyLinear(1))), None),
        "b": (as_judge(Lengths(), ["a cat", "some dog"]), lengths * means),
        "c": (of_pil, 255 * means),
        "c, of an array": (as_judge(lambda images: np.array([image.width for image in images])), torch.full((4,), 8.0)),
    }
    for name, (judge, expected) in cases.items():
        found = judge(given)
        assert found.dtype == torch.float32 and found.shape == (4,) and not found.requires_grad, name
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=name)


def test_images_of_several_sizes_are_judged_each_by_itself():
    images = drawn((8, 8), (4, 12), (8, 8))
    expected = torch.stack([tensors_of([image]).mean() for image in images])
    torch.testing.assert_close(as_judge(lambda x: x.mean((1, 2, 3)))(images), expected)
    lengths = torch.tensor([5.0, 1.0, 3.0])
    torch.testing.assert_close(as_judge(Lengths(), ["a cat", "a", "cat"])(images), lengths * expected)


def test_a_function_of_images_is_asked_once_and_not_with_tensors():
    asked = []

    def judge(images):
        asked.append([type(image) for image in images])
        return [1.0] * len(images)

    rate = as_judge(judge)
    assert rate(IMAGES[:2]).tolist() == [1.0, 1.0] and asked == [[Image.Image] * 2]


def test_loaded_rewards_judge_by_prompts_of_their_own_or_those_given():
    clip, tensors = make_clip(), torch.rand(4, 3, 32, 32)
    own = PreferenceReward("pickscore", clip, TEXTS[:2])
    assert as_judge(own, "a cat")(tensors).equal(own(tensors))
    free = PreferenceReward("pickscore", clip)
    assert as_judge(free, TEXTS[:2])(tensors).equal(own(tensors))
    reward = CLIPReward(clip, TEXTS[:2])
    torch.testing.assert_close(as_judge(reward, "whatever")(tensors), own(tensors), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"pickscore.score rates images against prompts: as_judge\(reward, prompts\)"):
        as_judge(free)
    with pytest.raises(ValueError, match="pickscore rates images against prompts, got none"):
        free.score(tensors)


def test_files_are_rated_as_the_clip_encodes_them(tmp_path):
    clip, images = make_clip(), drawn((40, 30), (32, 32), (20, 64))
    paths = [tmp_path / f"{place}.png" for place in range(3)]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    texts = clip.encode_text(TEXTS[:3])
    expected = clip.logit_scale.exp() * (clip.encode_image(images) * texts).sum(-1)
    reward = PreferenceReward("pickscore", clip)
    for given in (images, paths, [str(path) for path in paths], [path.read_bytes() for path in paths]):
        torch.testing.assert_close(reward.score(given, TEXTS[:3]), expected)
        torch.testing.assert_close(as_judge(reward, TEXTS[:3])(given), expected)
    torch.testing.assert_close(reward.score(paths, TEXTS[:3], batch_size=2), expected)
    assert reward.score(paths[0], TEXTS[0]).equal(reward.score([paths[0]], [TEXTS[0]]))
    head = AestheticReward(clip, torch.ones(24), torch.tensor(2.0))
    torch.testing.assert_close(head.score(paths), clip.encode_image(images).sum(-1) + 2)
    with pytest.raises(cg.ImageError, match=r"gone\.png"):
        reward.score([tmp_path / "gone.png"], "a cat")
    with pytest.raises(ValueError, match=r"pickscore reads images .* got \(1, 3, 8, 8\) of torch.uint8"):
        reward.score(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "a cat")


def test_what_steers_is_differentiable_and_takes_its_prompts():
    images = torch.rand(4, 3, 8, 8)
    steering = as_steering(Lengths(), ["a cat", "some dog"])
    found = gradient_at_images(steering, images)
    torch.testing.assert_close(found.rewards, Lengths().score(images, ["a cat"] * 2 + ["some dog"] * 2))
    expected = torch.tensor([5.0, 5.0, 8.0, 8.0])[:, None, None, None].expand_as(images) / images[0].numel()
    torch.testing.assert_close(found.gradient, expected)
    assert as_steering(redness) is redness
    network = PreferenceReward("pickscore", make_clip(), "a cat")
    assert as_steering(network) is network
    other = as_steering(network, "a dog")
    assert {id(each) for each in other.parameters()} == {id(each) for each in network.parameters()}
    with pytest.raises(ValueError, match="Lengths: 2 prompts cannot be shared out among 3 images"):
        steering(images[:3])


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        (lambda images: images.mean(), r"sums must return one number per image, shape \(2,\), got \(\)"),
        (lambda images: images.mean((2, 3)), r"sums must return one number per image, shape \(2,\), got \(2, 3\)"),
        (lambda images: [0.5], r"sums must return one number per image, shape \(2,\), got \(1,\)"),
        (lambda images: "good", "sums must return one number per image, got str"),
        (lambda images: None, "sums must return one number per image, got NoneType"),
        (lambda images: [1.0, float("nan")], "sums must return finite numbers, got nan for image 1"),
        (lambda images: [-float("inf"), 0.0], "sums must return finite numbers, got -inf for image 0"),
        (lambda images: images.sharpness(), "sums failed of PIL images: AttributeError: 'list' object has no"),
    ],
)
def test_what_a_reward_must_not_return_is_named(ratings, message):
    def sums(images):
        return ratings(images)

    with pytest.raises(RewardError, match=message) as caught:
        as_judge(sums)(IMAGES[:2])
    assert len(str(caught.value)) <= 300


def test_an_error_of_the_reward_itself_is_its_own():
    def service(images):
        raise ConnectionError("no such host")

    with pytest.raises(ConnectionError, match="no such host"):
        as_judge(service)(IMAGES)


def test_what_cannot_steer_is_named():
    images = torch.rand(2, 3, 8, 8)

    def detached(images):
        return images.detach().mean((1, 2, 3))

    def widths(images):
        return [float(len(image)) for image in images]

    with pytest.raises(ValueError, match="the reward detached must be differentiable in its input"):
        gradient_at_images(detached, images)
    with pytest.raises(ValueError, match=r"the reward widths must return one number per sample, .* got list"):
        gradient_at_images(widths, images)
    for adapt in (as_judge, as_steering):
        with pytest.raises(TypeError, match="expected a reward, a function of images .*; got str 'pickscore'"):
            adapt("pickscore")
        with pytest.raises(ValueError, match=r"Lengths.score rates images against prompts: as_.*\(reward, prompts\)"):
            adapt(Lengths())
        with pytest.raises(TypeError, match="expected a reward, .*; got type"):
            adapt(Lengths)
    with pytest.raises(TypeError, match=r"got Lengths: as_steering\(reward, prompts\) makes one"):
        cg.Guidance(Lengths())


def test_a_layer_called_score_is_no_method():
    class Scored(nn.Module):
        def __init__(self):
            super().__init__()
            self.score = nn.Linear(3, 1)

        def forward(self, images):
            return self.score(images.mean((2, 3)))[:, 0]

    network = Scored()
    assert as_judge(network, "a cat")(tensors_of(IMAGES)).shape == (4,) and as_steering(network, "a cat") is network
