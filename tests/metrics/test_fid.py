"""Fréchet distance: against scipy's matrix root, and in the cases that have a closed form."""

import numpy as np
import pytest
import scipy.linalg
import torch

from clip_guidance.metrics.fid import frechet_distance


def normal(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_equals_the_formula_with_scipys_root():
    a, b = normal(60, 5, 0) @ normal(5, 5, 1), normal(40, 5, 2) @ normal(5, 5, 3) + 1
    covariance_a, covariance_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = scipy.linalg.sqrtm(covariance_a @ covariance_b)
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum().item()
    expected = shift + np.trace(covariance_a + covariance_b - 2 * root.real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_in_one_dimension_means_and_deviations_differ():
    a, b = normal(30, 1, 0), 3 * normal(20, 1, 1) + 2
    expected = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected.item())


def test_a_shift_counts_by_its_square_and_a_rotation_not_at_all():
    a, b = normal(50, 4, 0), 2 * normal(50, 4, 1)
    assert frechet_distance(a, a + torch.tensor([1.0, 0, 2.0, 0])) == pytest.approx(5)
    rotation = torch.linalg.qr(normal(4, 4, 2)).Q
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(frechet_distance(a, b))
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))


def test_fewer_images_than_features():
    """Both covariances are singular. On planes at right angles the root vanishes: shift and variances are left."""
    a, b = torch.zeros(4, 8, dtype=torch.float64), torch.zeros(5, 8, dtype=torch.float64)
    a[:, :3], b[:, 3:6] = normal(4, 3, 0), normal(5, 3, 1)
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item())
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_sets_that_do_not_fit():
    with pytest.raises(ValueError, match=r"n, m at least 2, got \(1, 3\) and \(4, 3\)"):
        frechet_distance(torch.ones(1, 3), torch.ones(4, 3))
