"""Paired comparison: by hand, against scipy's bootstrap and the normal interval, and by its symmetries."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from clip_guidance.metrics import comparison
from clip_guidance.metrics.comparison import compare_scores


def runs(n: int, seed: int = 0) -> tuple[dict, dict]:
    random = np.random.default_rng(seed)
    a, b = random.normal(size=n), random.normal(0.3, 1, size=n)
    return dict(enumerate(a.tolist())), dict(enumerate(b.tolist()))


def test_by_hand():
    found = compare_scores({"x": 1.0, "y": 2.0, "z": 3.0, "gone": 9.0}, {"new": 5.0, "z": 4.5, "y": 2.0, "x": 0.5})
    assert found.keys == ["x", "y", "z"]
    assert (found.a.tolist(), found.b.tolist()) == ([1, 2, 3], [0.5, 2, 4.5])
    assert found.differences.tolist() == [-0.5, 0, 1.5]
    assert found.difference.estimate == pytest.approx(1 / 3)
    assert found.win_rate.estimate == pytest.approx((0 + 0.5 + 1) / 3)
    assert (found.only_a, found.only_b) == (["gone"], ["new"])


def test_agrees_with_scipys_percentile_bootstrap():
    a, b = runs(40)
    differences = np.array([b[key] - a[key] for key in a])
    wins = np.where(differences > 0, 1.0, 0.0)
    found = compare_scores(a, b, resamples=20_000, probability=0.9)
    for interval, values in ((found.difference, differences), (found.win_rate, wins)):
        options = dict(confidence_level=0.9, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
        theirs = scipy.stats.bootstrap((values,), np.mean, **options).confidence_interval
        assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
        assert interval.estimate == pytest.approx(values.mean())


def test_many_pairs_give_the_normal_interval():
    a, b = runs(2000)
    found = compare_scores(a, b, resamples=4000)
    half = 1.96 * found.differences.std(correction=0).item() / math.sqrt(2000)
    assert found.difference.low == pytest.approx(found.difference.estimate - half, abs=0.1 * half)
    assert found.difference.high == pytest.approx(found.difference.estimate + half, abs=0.1 * half)


def test_what_a_prompt_costs_cancels():
    a, b = runs(30)
    costs = np.random.default_rng(3).integers(-1000, 1000, 30).tolist()  # far more than the runs differ
    shifted = [{key: score + costs[key] for key, score in run.items()} for run in (a, b)]
    one, other = compare_scores(a, b), compare_scores(*shifted)
    assert other.difference.low == pytest.approx(one.difference.low, abs=1e-9)
    assert other.difference.high == pytest.approx(one.difference.high, abs=1e-9)
    assert other.win_rate == one.win_rate


def test_turned_round_everything_is_mirrored():
    a, b = runs(25)
    one, other = compare_scores(a, b), compare_scores(b, a)
    assert other.difference.low == pytest.approx(-one.difference.high)
    assert other.difference.high == pytest.approx(-one.difference.low)
    assert other.win_rate.low == pytest.approx(1 - one.win_rate.high)


def test_a_run_against_itself_is_a_tie():
    a, _ = runs(10)
    found = compare_scores(a, dict(reversed(a.items())))
    assert (found.difference.estimate, found.difference.low, found.difference.high) == (0, 0, 0)
    assert (found.win_rate.estimate, found.win_rate.low, found.win_rate.high) == (0.5, 0.5, 0.5)


def test_the_seed_decides_and_memory_does_not(monkeypatch):
    a, b = runs(25)
    one = compare_scores(a, b, resamples=500, seed=1)
    assert compare_scores(a, b, resamples=500, seed=2).difference != one.difference
    monkeypatch.setattr(comparison, "MAX_DRAWS", 30)  # a resample at a time
    in_parts = compare_scores(a, b, resamples=500, seed=1)
    assert in_parts.difference == one.difference and in_parts.win_rate == one.win_rate
    assert torch.equal(in_parts.differences, one.differences)


@pytest.mark.parametrize(
    "a,b,options,message",
    [
        (
            {"x": 1.0},
            {"x": 2.0},
            {},
            r"at least 2 pairs, got 1 of 1 keys in a \('x', ...\) and 1 keys in b \('x', ...\)",
        ),
        ({"x": 1.0}, {}, {}, r"at least 2 pairs, got 0 of 1 keys in a \('x', ...\) and 0 keys in b \(None, ...\)"),
        ({"x": 1.0, "y": math.nan}, {"x": 1.0}, {}, "run a: the score of 'y' is nan, expected a finite number"),
        ({"x": 1.0}, {"x": math.inf}, {}, "run b: the score of 'x' is inf"),
        ({}, {}, {"resamples": 0}, "expected resamples >= 1 and 0 < probability < 1, got 0 and 0.95"),
        ({}, {}, {"probability": 95}, "got 10000 and 95"),
    ],
)
def test_errors(a, b, options, message):
    with pytest.raises(ValueError, match=message):
        compare_scores(a, b, **options)
