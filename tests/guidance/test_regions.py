"""Regions: what their reward reads, that its gradient stays inside, and which masks and boxes are refused."""

import numpy as np
import pytest
import torch
from helpers.minimal_pipeline import loop, minimal_pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_guidance import ImageError
from clip_guidance.guidance import CLIPGuidance, CLIPReward, Cutouts, Decoding, Guidance, Region, WeightedRewards
from clip_guidance.guidance.engine.gradient import gradient_at_images

LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
HEIGHT, WIDTH = 16, 12


def random_images(count, seed=0):
    return torch.rand(count, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def soft_mask():
    """A mask with a soft edge, 0 in the first two rows, and 0 in a hole."""
    mask = torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3)) * 0.9 + 0.1
    mask[:2] = 0
    mask[8:10, 3:5] = 0
    return mask


def logits(clip, images, target):
    embeds = clip.image_embeds(clip.image_processor.differentiable(images.to(clip.device)))
    return clip.logit_scale.exp() * (embeds * clip.encode_text([target])).sum(-1)


# ---------------------------------------------------------------- what is read


def left_square(images):
    """The left half, on a square of the mean colour of its outermost pixels."""
    half = images[..., :6]
    inner = half[..., 1:-1, 1:-1]
    ground = (half.sum((-2, -1)) - inner.sum((-2, -1))) / (HEIGHT * 6 - (HEIGHT - 2) * 4)
    square = ground[..., None, None].repeat(1, 1, HEIGHT, HEIGHT)
    square[..., 5:11] = half
    return square


def test_a_box_is_read_as_a_square_with_the_colour_of_its_edge_beside_it(clip):
    images = random_images(2)
    reward = CLIPReward(clip, Region("dog", LEFT))
    torch.testing.assert_close(reward(images), logits(clip, left_square(images), "dog"))


def test_outside_of_a_soft_mask_is_the_colour_of_its_rim(clip):
    images, mask = random_images(2), soft_mask()
    weights = torch.zeros(HEIGHT, WIDTH)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            near = [
                float(mask[y, x]) if 0 <= y < HEIGHT and 0 <= x < WIDTH else 0.0
                for y in range(row - 1, row + 2)
                for x in range(column - 1, column + 2)
            ]
            weights[row, column] = mask[row, column] - min(near)
    ground = ((images * weights).sum((-2, -1)) / weights.sum())[..., None, None]
    square = ground.repeat(1, 1, 14, 14)  # the two rows without a mask are cut off
    square[..., 1:13] = (ground + mask * (images - ground))[..., 2:, :]
    torch.testing.assert_close(CLIPReward(clip, Region("dog", mask))(images), logits(clip, square, "dog"))


def test_a_region_of_one_colour_is_a_square_of_it(clip):
    """Whatever the mask: nothing then stands out from the ground."""
    images = torch.tensor([0.9, 0.2, 0.4])[:, None, None].expand(1, 3, HEIGHT, WIDTH)
    for place in (LEFT, soft_mask(), torch.full((HEIGHT, WIDTH), 0.3)):
        square = Region("dog", place).cut_out(images)
        torch.testing.assert_close(square, images[..., :1, :1].expand_as(square))


def test_regions_and_the_whole_image_add_up(clip):
    images = random_images(2)
    left, right = Region("dog", LEFT, weight=-2.0), Region({"cat": 1.0, "fish": -0.5}, RIGHT)
    reward = CLIPReward(clip, [left, ("rocket", 3.0), right, "tree"], Cutouts(3), chunk=2)
    single = [CLIPReward(clip, each, Cutouts(3)) for each in (left, right, {"rocket": 3.0, "tree": 1.0})]
    assert len(list(reward.parts(images))) == 6  # two chunks each
    reward.reset()
    torch.testing.assert_close(reward(images), sum(each(images) for each in single))
    torch.testing.assert_close(CLIPReward(clip, left)(images), -2 * CLIPReward(clip, Region("dog", LEFT))(images))


def test_a_prompt_may_have_regions_and_another_a_text(clip):
    images = random_images(6)
    targets = [[Region("dog", LEFT)], "cat", [Region("fish", RIGHT), "tree"]]
    reward = CLIPReward(clip, targets)
    rewards = reward(images)
    for index, target in enumerate(targets):
        mine = slice(2 * index, 2 * index + 2)
        torch.testing.assert_close(rewards[mine], CLIPReward(clip, target)(images[mine]))
    gradient = gradient_at_images(reward, images.clone()).gradient
    assert gradient[:2, ..., 6:].eq(0).all() and gradient[:2, ..., :6].ne(0).any()


@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_change_neither_the_reward_nor_its_gradient(clip, chunk):
    images, target = random_images(4), [[Region("dog", LEFT), "tree"], [Region("cat", soft_mask())]]
    whole, divided = (
        gradient_at_images(CLIPReward(clip, target, Cutouts(3, seed=2), each), images.clone()) for each in (None, chunk)
    )
    torch.testing.assert_close(divided.rewards, whole.rewards)
    torch.testing.assert_close(divided.gradient, whole.gradient)


def test_cutouts_are_views_of_the_region(clip):
    images, cutouts = random_images(2), Cutouts(4, seed=7)
    square = left_square(images)
    expected = torch.stack([logits(clip, view, "dog") for view in Cutouts(4, seed=7)(square)]).mean(0)
    torch.testing.assert_close(CLIPReward(clip, Region("dog", LEFT), cutouts)(images), expected)


# ---------------------------------------------------------------- the gradient stays inside


@pytest.mark.parametrize("place", [LEFT, soft_mask()], ids=["box", "mask"])
def test_the_gradient_is_that_of_the_reward_and_0_outside(clip, place):
    clip = clip.double()
    images, region = random_images(1).double(), Region("dog", place)
    reward = CLIPReward(clip, region, Cutouts(2))
    gradient = gradient_at_images(reward, images.clone()).gradient
    outside = region.mask(HEIGHT, WIDTH) == 0
    assert outside.any() and gradient[..., outside].eq(0).all() and gradient[..., ~outside].ne(0).all()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).double()
    changed = []
    for step in (1e-5, -1e-5):
        reward.reset()
        changed.append(reward(images + step * direction))
    slope = ((changed[0] - changed[1]) / 2e-5).item()
    assert slope == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


@pytest.mark.parametrize("place", [LEFT, soft_mask()], ids=["box", "mask"])
def test_outside_of_a_region_nothing_is_shifted(clip, place):
    """In mode x0, with a decoder and a denoiser that are local, over a whole run."""
    pipe, shape = minimal_pipeline(), (2, 3, HEIGHT, WIDTH)
    region = Region("dog", place)
    unguided = loop(pipe, shape=shape)
    options = {"to_image": lambda sample: sample / 2 + 0.5, "data_variance": 0.25}
    with CLIPGuidance(clip, [region], 50.0, cutouts=2, **options).attach(pipe):
        guided = loop(pipe, shape=shape)
    outside = region.mask(HEIGHT, WIDTH) == 0
    assert guided[..., outside].equal(unguided[..., outside])
    assert (guided - unguided)[..., ~outside].ne(0).all()


def test_regions_that_share_no_pixel_steer_as_if_alone(clip):
    images, regions = random_images(2), [Region("dog", LEFT), Region("cat", RIGHT)]
    both, *single = (
        gradient_at_images(CLIPReward(clip, each), images.clone()).gradient for each in (regions, *regions)
    )
    torch.testing.assert_close(both, single[0] + single[1])
    torch.testing.assert_close(both[..., :6], single[0][..., :6])


# ---------------------------------------------------------------- masks and boxes

FRACTIONS = st.tuples(st.floats(0, 0.9), st.floats(0.05, 1)).map(lambda pair: (pair[0], min(1.0, sum(pair))))


@settings(max_examples=10)
@given(FRACTIONS, FRACTIONS, st.integers(1, 40), st.integers(1, 40))
def test_a_box_covers_its_area(horizontal, vertical, height, width):
    (left, right), (top, bottom) = horizontal, vertical
    mask = Region("dog", (left, top, right, bottom)).mask(height, width)
    assert mask.shape == (height, width) and mask.min() >= 0 and mask.max() <= 1 + 1e-9
    assert mask.mean().item() == pytest.approx((right - left) * (bottom - top), abs=1e-9)


def test_masks_of_all_kinds_are_one_mask(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[4:9, 2:7] = True
    levels = np.uint8(255) * mask
    Image.fromarray(levels).save(tmp_path / "mask.png")
    Image.fromarray(levels).convert("RGB").save(tmp_path / "colour.png")
    kinds = [
        mask,
        levels,
        mask.astype(np.uint8),  # 0 and 1, as segmentations come
        mask.astype(np.float16),
        torch.from_numpy(mask).long(),
        torch.from_numpy(mask).bfloat16(),
        Image.fromarray(levels),
        Image.fromarray(mask),
        tmp_path / "mask.png",
        tmp_path / "colour.png",
    ]
    for kind in kinds:
        assert np.array_equal(Region("dog", kind).mask(HEIGHT, WIDTH), mask), type(kind)


@pytest.mark.parametrize("factor", [0.25, 0.5, 3])
def test_a_mask_has_any_size_of_the_images_aspect(factor):
    rows = torch.linspace(0, 1, round(factor * HEIGHT))
    mask = Region("dog", rows[:, None].expand(-1, round(factor * WIDTH))).mask(HEIGHT, WIDTH)
    assert mask.shape == (HEIGHT, WIDTH)
    torch.testing.assert_close(mask[:, 0], torch.linspace(0, 1, HEIGHT).double(), rtol=0, atol=0.13)
    assert mask.diff(dim=0).ge(-1e-9).all() and (mask - mask[:, :1]).abs().max() < 1e-12


def test_a_mask_whose_sides_were_rounded_fits():
    for rows, columns in ((5, 4), (683, 512), (1, 1)):  # 16 x 12 at other sizes; one pixel is of any aspect
        assert Region("dog", torch.ones(rows, columns)).mask(HEIGHT, WIDTH).shape == (HEIGHT, WIDTH)


def test_a_mask_of_another_aspect_is_refused(clip):
    reward = CLIPReward(clip, Region("dog", torch.ones(WIDTH, HEIGHT)))
    with pytest.raises(ValueError, match="mask of a region is 12 x 16, which is not the aspect of the image, 16 x 12"):
        reward(random_images(1))


def test_a_region_below_a_pixel_is_refused(clip):
    mask = torch.zeros(100 * HEIGHT, 100 * WIDTH)
    mask[500, 500] = 1
    with pytest.raises(ValueError, match="a region covers no pixel of an image of 16 x 12"):
        CLIPReward(clip, Region("dog", mask))(random_images(1))


BAD_PLACES = [
    ((0, 0, 1.5, 1), ValueError, r"box of a region must be \(left, top, right, bottom\) in \[0, 1\] with left < right"),
    ((-0.1, 0, 1, 1), ValueError, r"in \[0, 1\]"),
    ((0.5, 0, 0.5, 1), ValueError, "with left < right and top < bottom, got"),
    ((0, 1, 1, 0), ValueError, "with left < right and top < bottom, got"),
    ((0, 0, float("nan"), 1), ValueError, "the box of a region must be finite"),
    ((0, 0, 1), ValueError, r"the box of a region must be \(left, top, right, bottom\), got \(0, 0, 1\)"),
    (("0", 0, 1, 1), TypeError, "the box of a region 0 must be a number, got str '0'"),
    ("mask.png", TypeError, "mask_or_box must be four fractions, or a mask: .*; got str 'mask.png'"),
    (None, TypeError, "mask_or_box must be .* got NoneType"),
    (torch.zeros(4, 4), ValueError, "the mask of a region, 4 x 4, is 0 everywhere"),
    (np.zeros((4, 4), np.uint8), ValueError, "is 0 everywhere"),
    (torch.zeros(3, 4, 4), ValueError, r"the mask of a region must have the shape \(H, W\), got \(3, 4, 4\)"),
    (np.zeros((0, 4)), ValueError, r"the shape \(H, W\), got \(0, 4\)"),
    (torch.full((4, 4), 255.0), ValueError, r"floats in \[0, 1\], integers from 0 to 255, or bools; got 255 to 255"),
    (torch.full((4, 4), torch.nan), ValueError, "got nan to nan"),
    (torch.full((4, 4), -1), ValueError, "got -1 to -1 of torch.int64"),
    (Image.new("RGBA", (4, 4), "white"), ValueError, r"has transparency: pass that alone, image.getchannel\('A'\)"),
]


@pytest.mark.parametrize(("place", "error", "message"), BAD_PLACES)
def test_a_place_that_is_none_is_refused(place, error, message):
    with pytest.raises(error, match=message) as caught:
        Region("dog", place)
    assert len(str(caught.value)) <= 300


def test_a_mask_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        Region("dog", tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("target", "weight", "error", "message"),
    [
        ("", 1.0, ValueError, "the target of a region is empty"),
        (3, 1.0, TypeError, "the target of a region must be a text, .*; got int 3"),
        (["dog", "cat"], 1.0, TypeError, "the target of a region must be a text, .*; got list"),
        (Region("dog", LEFT), 1.0, TypeError, "the target of a region must be a text, .*; got Region"),
        ("dog", float("nan"), ValueError, "the weight of a region must be finite, got nan"),
        ("dog", "1", TypeError, "the weight of a region is a str; expected a number"),
    ],
)
def test_a_region_of_a_bad_target_or_weight_is_refused(target, weight, error, message):
    with pytest.raises(error, match=message):
        Region(target, LEFT, weight)


# ---------------------------------------------------------------- windows of the image


def test_a_crop_of_the_decoding_would_move_the_regions(clip):
    crop, region, message = Decoding(crop=0.5), Region("dog", LEFT), "a region is a part of the whole image"
    reward = CLIPReward(clip, region)
    for each in (reward, WeightedRewards([(1.0, reward)])):
        with pytest.raises(ValueError, match=message):
            Guidance(each, decoding=crop)
    guidance = CLIPGuidance(clip, region)
    with pytest.raises(ValueError, match=message):
        guidance.decoding = crop
    guidance.target, guidance.decoding = "dog", crop
    guidance.target = region
    with pytest.raises(ValueError, match=message):
        guidance.start_run()
