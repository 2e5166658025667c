"""Cutouts of images: what is drawn, from where, and what a view does to an image."""

import math

import pytest
import torch

from clip_guidance.guidance import Cutouts


def random_images(count, size=(16, 12), seed=0):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def test_the_first_cutout_is_the_whole_image():
    images = random_images(2)
    (view,) = Cutouts()(images)
    assert view is images
    assert next(iter(Cutouts(5)(images))) is images


def test_the_others_are_square_parts_of_the_image_or_its_mirror_image():
    images = random_images(1, size=(20, 12))
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


def test_the_draw_is_the_same_for_every_image_of_a_batch():
    images = random_images(3)
    batch = list(Cutouts(5)(images))
    for i in range(3):
        alone = list(Cutouts(5)(images[i : i + 1]))
        assert all(a.equal(b[i : i + 1]) for a, b in zip(alone, batch, strict=True))


def test_draws_go_on_until_reset():
    cutouts, images = Cutouts(6, seed=3), random_images(1)
    first, second = list(cutouts(images)), list(cutouts(images))
    cutouts.reset()
    again = list(cutouts(images))
    assert not all(a.shape == b.shape and a.equal(b) for a, b in zip(first, second, strict=True))
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))


def test_cutouts_work_on_an_image_of_one_pixel_and_pass_gradients():
    images = random_images(1, size=(1, 1)).requires_grad_()
    total = sum(view.sum() for view in Cutouts(3)(images))
    assert torch.autograd.grad(total, images)[0].tolist() == [[[[3.0]]] * 3]


# ---------------------------------------------------------------- the draws are stratified


def columns(width):
    """An image whose values tell the column, (1, 3, width, width)."""
    return torch.arange(float(width)).expand(1, 3, width, width)


@pytest.mark.parametrize("count", [2, 8, 13])
@pytest.mark.parametrize("smallest", [0.2, 0.8])
def test_one_crop_lies_in_each_stratum_of_sizes_and_places(count, smallest):
    width = 4000  # so that rounding to pixels moves no crop out of its stratum, but for its edges
    across = columns(width)
    down = across.transpose(2, 3)
    cutouts = Cutouts(count + 1, seed=count, smallest=smallest, flip=False)
    found = []
    for view in cutouts.views()[1:]:
        crop = view(across)
        size = crop.shape[-1]
        room = width - size + 1
        scale = (size / width - smallest) / (1 - smallest)
        found.append((scale, view(down)[0, 0, 0, 0].item() / room, crop[0, 0, 0, 0].item() / room))
    for numbers in zip(*found, strict=True):
        for stratum, number in enumerate(sorted(numbers)):
            assert stratum / count - 0.01 <= number <= (stratum + 1) / count + 0.01


@pytest.mark.parametrize("count", [2, 8, 20])
def test_half_of_the_crops_are_mirrored(count):
    def mirrored(cutouts):
        crops = [view(columns(64)) for view in cutouts.views()[1:]]
        return sum(bool(crop[0, 0, 0, 0] > crop[0, 0, 0, -1]) for crop in crops)

    assert mirrored(Cutouts(count + 1, seed=1)) == count / 2
    assert mirrored(Cutouts(count + 1, seed=1, flip=False)) == 0


def test_brightness_is_stratified_between_its_bounds():
    grey = torch.full((1, 3, 9, 9), 0.5)  # contrast and saturation do nothing to it
    for jitter in (0.1, 0.6):
        factors = [view(grey).mean().item() / 0.5 for view in Cutouts(11, jitter=jitter).views()[1:]]
        for stratum, factor in enumerate(sorted(factors)):
            low, high = (1 - jitter + 2 * jitter * (stratum + edge) / 10 for edge in (0, 1))
            assert low - 1e-5 <= factor <= high + 1e-5


@pytest.mark.slow
def test_many_crops_look_at_every_place_and_alike_from_all_sides():
    """Their mean is a weighted mean of the image, whose weights are the gradient."""
    image, count = torch.zeros(1, 3, 24, 24, dtype=torch.float64, requires_grad=True), 4000
    mean = sum(view(image).mean() for view in Cutouts(count).views()) / count
    weights = torch.autograd.grad(mean, image)[0][0, 0] * 3
    assert weights.sum().item() == pytest.approx(1)
    assert weights.min() > 0 and weights[12, 12] > 2 * weights[0, 0]
    for other in (weights.flip(0), weights.flip(1), weights.T):
        torch.testing.assert_close(weights, other, rtol=0.15, atol=0)


# ---------------------------------------------------------------- what a view does


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_a_view_is_linear_in_the_image(jitter):
    a, b = random_images(2).double(), random_images(2, seed=1).double()
    for view in Cutouts(6, jitter=jitter).views():
        torch.testing.assert_close(view(2 * a - 3 * b), 2 * view(a) - 3 * view(b))


def test_colours_change_as_torchvision_changes_them():
    """Against its formulas: x·b; then a blend with the mean grey; then one with the image's own grey."""
    whole = {"count": 2, "smallest": 1.0, "flip": False}
    images = random_images(3, size=(10, 10)).double()
    for seed in range(5):
        found = Cutouts(**whole, seed=seed, jitter=0.4).views()[1](images)
        brightness, contrast, saturation = factors(Cutouts(**whole, seed=seed, jitter=0.4).views()[1])
        expected = images * brightness
        expected = contrast * expected + (1 - contrast) * grey(expected).mean((1, 2, 3), keepdim=True)
        expected = saturation * expected + (1 - saturation) * grey(expected)
        torch.testing.assert_close(found, expected)
        assert all(1e-4 < abs(factor - 1) <= 0.4 for factor in (brightness, contrast, saturation))


def grey(images):
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def factors(view):
    """Brightness, contrast and saturation of a view, from three images on which they do not all act."""
    flat = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64)
    brightness = view(flat).mean().item() / 0.5
    stripes = flat.clone()
    stripes[..., ::2] += 0.25
    seen = view(stripes)
    contrast = (seen.max() - seen.min()).item() / (0.25 * brightness)
    red = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    red[:, 0] = 1
    seen = view(red)
    return brightness, contrast, (seen[0, 0, 0, 0] - seen[0, 1, 0, 0]).item() / (brightness * contrast)


def test_noise_has_its_standard_deviation_and_is_the_same_for_every_image():
    images = torch.zeros(3, 3, 200, 200)
    first, second = (view(images) for view in Cutouts(3, smallest=1.0, noise=0.2).views()[1:])
    assert first.std().item() == pytest.approx(0.2, rel=0.02) and abs(first.mean().item()) < 0.005
    assert first[0].equal(first[1]) and first[0].equal(first[2])
    assert abs((first * second).mean().item()) < 0.002  # another draw for each view


def test_views_may_be_called_in_any_order_and_more_than_once():
    images = random_images(2)
    options = {"count": 5, "jitter": 0.2, "noise": 0.1}
    in_order = [view(images) for view in Cutouts(**options).views()]
    views = Cutouts(**options).views()
    backwards = [view(images) for view in reversed(views)][::-1]
    again = [view(images) for view in views]
    assert all(a.equal(b) and a.equal(c) for a, b, c in zip(in_order, backwards, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_views_keep_the_precision(dtype):
    assert {view(random_images(1).to(dtype)).dtype for view in Cutouts(3, jitter=0.2, noise=0.1).views()} == {dtype}


def test_everything_random_comes_from_a_generator_of_its_own():
    images, drawn = random_images(1), []
    with torch.random.fork_rng():
        for seed in (0, 99):
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            drawn.append(list(Cutouts(4, jitter=0.2, noise=0.1)(images)))
            assert torch.get_rng_state().equal(state)
    assert all(a.equal(b) for a, b in zip(*drawn, strict=True))


BAD = [
    ({"count": 0}, r"cutouts must be at least 1 \(the whole image\), got 0"),
    ({"smallest": 0.0}, r"smallest must be in \(0, 1\], got 0.0"),
    ({"smallest": 1.1}, r"smallest must be in \(0, 1\], got 1.1"),
    ({"jitter": -0.1}, r"jitter must be in \[0, 1\), got -0.1"),
    ({"jitter": 1.0}, r"jitter must be in \[0, 1\), got 1.0"),
    ({"noise": -1.0}, "noise must be finite and at least 0, got -1.0"),
    ({"noise": math.inf}, "noise must be finite and at least 0, got inf"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Cutouts(**options)
