"""Weights along a path, and resampling: closed forms and properties."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clip_guidance.guidance.particles.potentials import POTENTIALS, PathWeights, in_place, resampled

potentials = pytest.mark.parametrize("potential", POTENTIALS)


def rewards(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@potentials
def test_weights_are_the_papers(potential):
    r = rewards(3, 2, 4)
    paths = PathWeights.start(potential, 2, 4)
    expected = {
        "difference": [r[0], r[1] - r[0], r[2] - r[1]],
        "max": [r[0], r[:2].amax(0), r.amax(0)],
        "sum": [r[0], r[0] + r[1], r.sum(0)],
    }[potential]
    for given_rewards, log_potential in zip(r, expected, strict=True):
        torch.testing.assert_close(paths.weigh(given_rewards), log_potential.softmax(1))


@potentials
def test_the_product_along_a_path_is_the_exponential_of_its_last_reward(potential):
    """Through all resamplings: the logarithms add up to r of the image."""
    r, parents = rewards(3, 1, 4), torch.tensor([[0, 0, 2, 2]])
    paths = PathWeights.start(potential, 1, 4)
    for given_rewards in r:
        paths.weigh(given_rewards)
        paths.take_rows(parents)
    last = rewards(1, 4)
    before = paths.paid
    paths.weigh_last(last)
    torch.testing.assert_close(paths.paid, last)
    assert not torch.allclose(before, last)
    alone = PathWeights.start(potential, 1, 4)  # nothing on the way: importance weights
    torch.testing.assert_close(alone.weigh_last(last), last.softmax(1))
    torch.testing.assert_close(alone.log_evidence, last.exp().mean(1).log())


@potentials
def test_a_reward_that_is_not_finite_weighs_nothing_and_a_group_of_them_goes_on(potential):
    paths = PathWeights.start(potential, 2, 3)
    r = torch.tensor([[1.0, -math.inf, 0.0], [-math.inf] * 3], dtype=torch.float64)
    weights = paths.weigh(r)
    assert weights[0, 1] == 0 and weights[0, 0] > weights[0, 2] > 0
    assert weights[1].tolist() == pytest.approx([1 / 3] * 3)
    paths.take_rows(torch.tensor([[0, 0, 2], [0, 1, 2]]))
    later = paths.weigh_last(torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64))
    assert later.isfinite().all() and paths.log_evidence.isfinite().all()
    assert later[1].tolist() == pytest.approx(torch.tensor([0.0, 1.0, 2.0]).softmax(0).tolist())


@pytest.mark.slow
@given(st.lists(st.floats(0, 1), min_size=1, max_size=7).filter(lambda w: sum(w) > 0), st.integers(0, 2**31))
def test_each_has_its_share_of_children_rounded_up_or_down(shares, seed):
    weights = torch.tensor([shares], dtype=torch.float64)
    weights = weights / weights.sum()
    k = len(shares)
    parents = resampled(weights, torch.Generator().manual_seed(seed))
    children = parents[0].bincount(minlength=k)
    assert children.sum() == k and ((children - k * weights[0]).abs() < 1 + 1e-9).all()
    assert not children[weights[0] == 0].any()
    assert all(parents[0, i] == i for i in range(k) if children[i])  # who goes on keeps its place


def test_children_are_as_many_as_the_weights_say_on_average():
    weights = torch.tensor([0.05, 0.15, 0.3, 0.5], dtype=torch.float64)
    parents = resampled(weights.repeat(20000, 1), torch.Generator().manual_seed(0))
    children = (parents[:, :, None] == torch.arange(4)).sum(1).double()
    error = children.std(0) / len(children) ** 0.5
    assert ((children.mean(0) - 4 * weights).abs() < 3 * error + 1e-9).all()


def test_equal_weights_change_nothing_and_groups_do_not_mix():
    assert resampled(torch.full((5, 4), 0.25), torch.Generator()).tolist() == [[0, 1, 2, 3]] * 5
    assert in_place(torch.tensor([[3, 3, 3, 0], [1, 1, 2, 2]])).tolist() == [[0, 3, 3, 3], [1, 1, 2, 2]]
