"""Kernel distance: its sum written out, zero for one distribution, growing with the distance between two."""

import itertools

import pytest
import torch
from tiny import make_clip

from clip_guidance.distance import image_features, kernel_distance


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
