"""Kernel distance: its sum written out, zero for one distribution, growing with the distance between two."""

import itertools

import pytest
import torch
from helpers.factories import make_clip

from clip_guidance.metrics.features import image_features
from clip_guidance.metrics.kid import kernel_distance, kernel_distance_interval
from clip_guidance.metrics.precision_recall import precision_recall
from clip_guidance.metrics.statistics import bounds, resample_counts


def test_equals_the_sum_written_out():
    a, b = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)

    def k(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    expected = (
        sum(k(x, y) for x, y in itertools.permutations(a, 2)) / 12
        + sum(k(x, y) for x, y in itertools.permutations(b, 2)) / 20
        - 2 * sum(k(x, y) for x in a for y in b) / 20
    )
    assert kernel_distance(a, b) == pytest.approx(expected)


def test_unbiased_and_monotone():
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 100, 8, generator=generator) for _ in range(200)]
    same = torch.tensor([kernel_distance(a, b) for a, b in draws])
    assert same.mean().abs() < 4 * same.std() / 200**0.5
    a, b = draws[0]
    distances = [kernel_distance(a, b + shift) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert distances == sorted(distances)


def test_features_do_not_depend_on_the_batch():
    clip, images = make_clip("resnet", "cbow"), torch.rand(5, 3, 32, 32)
    whole = image_features(clip, images)
    assert whole.shape == (5, 32)
    torch.testing.assert_close(whole.norm(dim=-1), torch.full((5,), 32**0.5))
    torch.testing.assert_close(image_features(clip, images, batch_size=2), whole)


def test_sets_that_do_not_fit():
    with pytest.raises(ValueError, match=r"n, m at least 2, got \(1, 3\) and \(4, 3\)"):
        kernel_distance(torch.ones(1, 3), torch.ones(4, 3))


def test_a_resample_of_the_kernel_distance_is_that_of_the_drawn_images():
    a, b = torch.randn(12, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    found = kernel_distance_interval(a, b, resamples=1, probability=0.5, seed=3)
    counts = resample_counts(12, 1, seed=3)[0].long()
    drawn = torch.arange(12).repeat_interleave(counts)

    def k(x, y):
        return (float(x @ y) / 4 + 1) ** 3

    pairs = [(i, j) for i, j in itertools.permutations(drawn.tolist(), 2) if i != j]  # no image beside its copy
    expected = sum(k(a[i], a[j]) for i, j in pairs) / len(pairs)
    expected += sum(k(x, y) for x, y in itertools.permutations(b, 2)) / (9 * 8)
    expected -= 2 * sum(k(a[i], y) for i in drawn for y in b) / (12 * 9)
    assert found.low == found.high == pytest.approx(expected)
    assert found.estimate == pytest.approx(kernel_distance(a, b))


def test_the_interval_holds_the_distance_as_often_as_it_says():
    """For x ~ N(m, I) and a given y, x.y/d is normal: E (s + 1)^3 = (1 + mean)^3 + 3 (1 + mean) variance."""
    generator, dim = torch.Generator().manual_seed(0), 6
    reference = torch.randn(60, dim, generator=generator, dtype=torch.float64)
    mean, variance = 0.5 * reference.sum(1) / dim, reference.square().sum(1) / dim**2
    across = ((1 + mean) ** 3 + 3 * (1 + mean) * variance).mean()
    within = _expected_kernel_of_two(0.5, dim)
    kernel = (reference @ reference.T / dim + 1) ** 3
    truth = within + (kernel.sum() - kernel.trace()) / (60 * 59) - 2 * across
    inside = 0
    for _ in range(100):
        drawn = torch.randn(150, dim, generator=generator, dtype=torch.float64) + 0.5
        found = kernel_distance_interval(drawn, reference, resamples=200, probability=0.9)
        inside += found.low < truth < found.high
    assert 80 <= inside <= 98


def _expected_kernel_of_two(shift: float, dim: int) -> float:
    """E (x.x'/d + 1)^3 of independent x, x' ~ N(shift, I), by the cumulants of their scalar product."""
    mean = dim * shift**2 / dim
    variance = (dim + 2 * dim * shift**2) / dim**2
    third = 6 * dim * shift**2 / dim**3
    return (1 + mean) ** 3 + 3 * (1 + mean) * variance + third


def test_precision_and_recall_of_what_they_should_be_certain_of():
    generator = torch.Generator().manual_seed(0)
    real = torch.cat([torch.randn(60, 5, generator=generator), torch.randn(60, 5, generator=generator) + 50])
    same = precision_recall(real, real)
    assert (same.precision, same.recall) == (1, 1)
    one_mode = precision_recall(real[:60], real)  # half of what is real, all of it faithful
    assert (one_mode.precision, one_mode.recall) == (1, 0.5)
    far = precision_recall(real + 500, real)
    assert (far.precision, far.recall) == (0, 0)
    with pytest.raises(ValueError, match="expected more than 3 images in each set, got 3 and 120"):
        precision_recall(real[:3], real)


def test_bounds_are_percentiles():
    low, high = bounds(torch.arange(101, dtype=torch.float64), probability=0.9)
    assert (low, high) == pytest.approx((5, 95))
