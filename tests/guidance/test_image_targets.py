"""Images as targets, alone, with weights beside texts, and one target for each prompt."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.factories import generate, make_clip
from PIL import Image

from clip_guidance import ImageError
from clip_guidance.guidance import CLIPGuidance, CLIPReward, Cutouts, WeightedRewards


def image_of(seed, size=(9, 7)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def random_images(count, seed=0):
    return torch.rand(count, 3, 16, 12, generator=torch.Generator().manual_seed(seed))


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.fixture
def path(tmp_path):
    image_of(0).save(tmp_path / "reference.png")
    return tmp_path / "reference.png"


def test_the_reward_is_clips_logit_of_the_two_images(clip, path):
    images = random_images(2)
    embeds = clip.image_embeds(clip.image_processor.differentiable(images.to(clip.device)))
    expected = clip.logit_scale.exp() * (embeds * clip.encode_image([image_of(0)])).sum(-1)
    for target in (image_of(0), as_tensor(image_of(0)), path):
        torch.testing.assert_close(CLIPReward(clip, target)(images), expected)
    assert not clip.encoded_texts


def test_an_image_of_a_real_clip_is_most_like_itself():
    clip = make_clip()
    side = clip.image_processor.image_size
    one, other = image_of(0, (side, side)), image_of(1, (side, side))
    rewards = CLIPReward(clip, one)(torch.stack([as_tensor(one), as_tensor(other)]))
    assert rewards[0].item() == pytest.approx(clip.logit_scale.exp().item(), rel=1e-5)
    assert rewards[1] < rewards[0] - 1e-3


def test_images_and_texts_are_weighed_against_each_other(clip, path):
    images = random_images(3)
    mapped = CLIPReward(clip, {path: 2.0, "dog": -0.5}, Cutouts(3))
    paired = CLIPReward(clip, [(image_of(0), 2.0), ("dog", -0.5)], Cutouts(3))
    mixed = CLIPReward(clip, [(path, 1.0), ({"dog": -1.0}, 0.5), path], Cutouts(3))  # a plain entry weighs 1
    apart = WeightedRewards([(2.0, CLIPReward(clip, path, Cutouts(3))), (-0.5, CLIPReward(clip, "dog", Cutouts(3)))])
    expected = apart(images)
    for reward in (mapped, paired, mixed):
        torch.testing.assert_close(reward(images), expected)


def test_each_prompt_has_a_target_with_weights_of_its_own(clip, path):
    images = random_images(6)
    targets = [path, {"dog": 1.0, path: -0.5}, "cat"]
    rewards = CLIPReward(clip, targets)(images)
    for index, target in enumerate(targets):
        mine = slice(2 * index, 2 * index + 2)
        torch.testing.assert_close(rewards[mine], CLIPReward(clip, target)(images[mine]))


def test_tensors_are_keys_by_identity(clip):
    one, other = (as_tensor(image_of(seed)) for seed in (0, 1))
    reward = CLIPReward(clip, {one: 1.0, other: -1.0})
    embeds = clip.encode_image([image_of(0), image_of(1)])
    torch.testing.assert_close(reward.target_embeds, (embeds[0] - embeds[1])[None])


def test_an_image_steers(tiny_pipeline, clip):
    pipe, reference = tiny_pipeline(), image_of(0)
    rewards = []
    for scale in (-2.0, 0.0, 2.0):
        with CLIPGuidance(clip, reference, scale).attach(pipe):
            images = generate(pipe, seeds=(0,), steps=3, output_type="pt")
        rewards.append(CLIPReward(clip, reference)(images).item())
    assert rewards == sorted(rewards) and len(set(rewards)) == 3


def test_a_target_that_is_changed_later_does_not_change_what_was_given(clip):
    given = [{"dog": 1.0}, "cat"]
    reward = CLIPReward(clip, given)
    given[0]["dog"] = 5.0
    reward.target[0]["dog"] = 7.0
    assert reward.target == [{"dog": 1.0}, "cat"]


# ---------------------------------------------------------------- bad images


def test_a_file_that_is_no_image_is_named(clip, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    for path, reason in ((tmp_path / "notes.png", "is not an image"), (tmp_path / "gone.png", "no such file")):
        with pytest.raises(ImageError, match=f"{path.name}: {reason}") as caught:
            CLIPReward(clip, {"dog": 1.0, path: 1.0})
        assert len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, 5, 5), r"the target: expected a tensor \(3, H, W\), got \(2, 5, 5\)"),
        (torch.zeros(1, 3, 5, 5), r"the target: expected a tensor \(3, H, W\)"),
        (torch.full((3, 5, 5), 2.0), r"the target: expected values in \[0, 1\], got 2 to 2"),
        (torch.full((3, 5, 5), torch.nan), r"the target: expected values in \[0, 1\], got nan"),
    ],
)
def test_a_tensor_that_is_no_image_is_refused(clip, tensor, message):
    with pytest.raises(ImageError, match=message):
        CLIPReward(clip, tensor)


def test_an_embedding_that_is_not_finite_is_named(clip, path):
    clip.encode_image = lambda images: torch.full((len(images), 5), torch.nan)
    with pytest.raises(ValueError, match="the embedding of target 1 is not finite: the image or the CLIP's weights"):
        CLIPReward(clip, ["dog", Path(path)])
