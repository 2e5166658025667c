"""CMMD: the published formula written out, its known bias, its limits, and tiles that change nothing."""

import math

import pytest
import torch

from clip_guidance.metrics.cmmd import cmmd
from clip_guidance.metrics.kid import kernel_distance, mean_kernel


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=-1)


def test_equals_the_formula_written_out():
    x, y = unit(3, 4, 0), unit(5, 4, 1)

    def k(a, b, sigma):
        return math.exp(-sum((p - q) ** 2 for p, q in zip(a.tolist(), b.tolist(), strict=True)) / (2 * sigma**2))

    for sigma in (10.0, 0.5):
        within_x = sum(k(a, b, sigma) for a in x for b in x) / 9
        within_y = sum(k(a, b, sigma) for a in y for b in y) / 25
        across = sum(k(a, b, sigma) for a in x for b in y) / 15
        assert cmmd(x, y, sigma) == pytest.approx(1000 * (within_x + within_y - 2 * across), rel=1e-9)


def test_two_points_by_hand():
    """All of one set at e, all of the other at −e: 1000 · (1 + 1 − 2 exp(−4 / 200)), the most there is."""
    e = torch.tensor([[1.0, 0.0]])
    found = cmmd(e.expand(2, 2), -e.expand(3, 2))
    assert found == pytest.approx(2000 * (1 - math.exp(-0.02)))
    assert found == pytest.approx(39.6, abs=0.1)  # "about 40", as its docstring says


def test_is_zero_for_equal_sets_symmetric_and_blind_to_order_and_rotation():
    x, y = unit(20, 6, 0), unit(30, 6, 1)
    assert cmmd(x, x.flip(0)) == pytest.approx(0, abs=1e-12)
    assert cmmd(torch.cat([x, x]), x) == pytest.approx(0, abs=1e-12)  # each image twice: the same distribution
    assert cmmd(x, y) == pytest.approx(cmmd(y, x.flip(0)))
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    assert cmmd(x @ rotation, y @ rotation) == pytest.approx(cmmd(x, y))


def test_the_bias_is_the_one_that_is_declared():
    n, draws = 50, 60
    found = torch.tensor([cmmd(unit(n, 8, 2 * seed), unit(n, 8, 2 * seed + 1)) for seed in range(draws)])
    pool = unit(3000, 8, 1000)
    mean_of_k = torch.exp(-(2 - 2 * pool[:1500] @ pool[1500:].T) / 200).mean()
    expected = 2000 * (1 - mean_of_k) / n
    assert abs(found.mean() - expected) < 4 * found.std() / draws**0.5
    assert expected > 10 * found.std() / draws**0.5  # the bias is far from nothing: the test can fail


def test_does_not_cancel_in_float32():
    """The formula in float32 as published loses what a small distance is made of."""
    x = unit(200, 16, 0)
    shifted = torch.nn.functional.normalize(x + 1e-4 * unit(1, 16, 1), dim=-1)
    exact = cmmd(x, shifted)
    # to second order in the shift t, as k is nearly quadratic: 1000 · ‖mean shift‖² / 100
    expected = 10 * (shifted - x).mean(0).square().sum().item()
    assert exact == pytest.approx(expected, rel=0.05)
    assert cmmd(x.float(), shifted.float()) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("others_only", [False, True])
def test_tiles_do_not_change_a_mean(chunk, others_only):
    x, y = unit(7, 3, 0), unit(5, 3, 1)
    y = x if others_only else y
    whole = (x @ y.T).exp()
    expected = whole.mean() if not others_only else (whole.sum() - whole.trace()) / (7 * 6)
    found = mean_kernel(x, y, lambda a, b: (a @ b.T).exp(), others_only, chunk)
    assert found == pytest.approx(expected.item())


@pytest.mark.parametrize("distance", [cmmd, kernel_distance])
def test_no_matrix_of_all_pairs_is_held(distance, monkeypatch):
    """The largest tensor either distance makes has the size of a tile or of the features, whatever n."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            for tensor in output if isinstance(output, (list, tuple)) else [output]:
                Largest.elements = max(Largest.elements, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
            return output

    with Largest():
        distance(unit(2500, 4, 0), unit(2400, 4, 1))
    assert 0 < Largest.elements <= 1024**2


def test_errors():
    with pytest.raises(ValueError, match="expected a bandwidth above 0, got 0"):
        cmmd(unit(3, 2, 0), unit(3, 2, 1), bandwidth=0)
    with pytest.raises(ValueError, match=r"n, m at least 2, got \(3, 2\) and \(3, 4\)"):
        cmmd(unit(3, 2, 0), unit(3, 4, 1))
