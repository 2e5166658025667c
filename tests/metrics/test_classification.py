"""Metrics and calibration against definitions written out and closed forms."""

import math

import pytest
import torch

from clip_guidance.metrics import retrieval
from clip_guidance.metrics.classification import (
    average_precision,
    calibration_error,
    classification_metrics,
    fit_temperature,
)
from clip_guidance.metrics.retrieval import recall_at_k


def test_metrics_of_a_case_counted_by_hand():
    logits = torch.tensor([[3.0, 1, 0], [3, 1, 0], [0, 2, 1], [0, 2, 1], [1, 0, 1]])
    targets = torch.tensor([0, 1, 1, 2, 2])
    found = classification_metrics(logits, targets)
    assert found.count == 5 and found.top5 is None
    assert found.top1 == pytest.approx(2 / 5)  # the last one is a tie, which is wrong
    assert found.mean_per_class_recall == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]


def test_metrics_equal_their_definitions():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(400, 12, generator=generator), torch.randint(0, 9, (400,), generator=generator)
    found = classification_metrics(logits, targets)
    order = logits.argsort(1, descending=True)
    assert found.top1 == pytest.approx((order[:, 0] == targets).double().mean().item())
    assert found.top5 == pytest.approx((order[:, :5] == targets[:, None]).any(1).double().mean().item())
    recalls = [(order[targets == c, 0] == c).double().mean().item() for c in range(9)]  # three labels never occur
    assert found.mean_per_class_recall == pytest.approx(sum(recalls) / 9)
    assert found.confusion.sum() == 400
    assert found.confusion.sum(1).tolist() == torch.bincount(targets, minlength=12).tolist()


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"expected logits \(n, L\) and targets \(n,\), got \(3, 2\), \(4,\)"):
        classification_metrics(torch.zeros(3, 2), torch.zeros(4, dtype=torch.long))


def test_probabilities_that_come_true_have_no_calibration_error():
    sure = torch.tensor([0.55] * 20 + [0.75] * 20)
    probs = torch.stack([sure, 1 - sure], 1)
    targets = torch.tensor([0] * 11 + [1] * 9 + [0] * 15 + [1] * 5)
    assert calibration_error(probs, targets) == pytest.approx(0, abs=1e-6)
    assert calibration_error(probs, 1 - targets) == pytest.approx((0.1 + 0.5) / 2)  # 0.55 - 0.45 and 0.75 - 0.25


@pytest.mark.parametrize("temperature", [0.3, *(pytest.param(value, marks=pytest.mark.slow) for value in (1.0, 6.0))])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40_000, 4, generator=generator, dtype=torch.float64)
    targets = (logits / temperature).softmax(1).multinomial(1, generator=generator)[:, 0]
    found = fit_temperature(logits, targets)
    assert found == pytest.approx(temperature, rel=0.05)
    assert fit_temperature(10 * logits, targets) == pytest.approx(10 * found, rel=1e-9)


def test_the_temperature_is_the_maximum_of_the_likelihood():
    generator = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(50, 3, generator=generator).double(), torch.arange(50) % 3
    logits[torch.arange(50), targets] += 0.7
    best = fit_temperature(logits, targets)
    loss = [torch.nn.functional.cross_entropy(logits / t, targets).item() for t in (best, 0.99 * best, 1.01 * best)]
    assert loss[0] < min(loss[1:])


def test_samples_that_fit_no_temperature_are_named():
    logits = torch.eye(3)
    with pytest.raises(ValueError, match="all 3 labelled images are right: no finite confidence fits"):
        fit_temperature(logits, torch.arange(3))
    with pytest.raises(ValueError, match="the 3 labelled images are right no more often than by chance"):
        fit_temperature(logits, (torch.arange(3) + 1) % 3)


def test_average_precision_is_the_mean_over_positives():
    scores, positives = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), torch.tensor([True, False, True, False, True])
    assert average_precision(scores, positives) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert average_precision(torch.zeros(5), positives) == pytest.approx(3 / 5)  # ties count together
    assert math.isnan(average_precision(scores, torch.zeros(5, dtype=torch.bool)))


def test_a_query_is_hit_by_any_of_its_right_answers():
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.5, 0.5], [0.3, 0.2, 0.1]])
    positives = torch.tensor([[False, True, True], [False, True, False], [False, False, False]])
    found = recall_at_k(similarity, torch.eye(3), positives.nonzero(), (1, 2))
    assert found == {"R@1": 0.0, "R@2": 1.0}  # the tie of the second is no hit, the third has no right answer
    assert recall_at_k(similarity[:1], torch.eye(3), torch.tensor([[0, 0], [0, 1], [0, 2]]), (1,)) == {"R@1": 1.0}


def test_recall_is_the_same_in_blocks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, candidates = torch.randn(50, 8, generator=generator), torch.randn(30, 8, generator=generator)
    targets = torch.randint(30, (50,), generator=generator)
    pairs = torch.stack([torch.arange(50), targets], 1)
    found = recall_at_k(queries, candidates, targets, (1, 5, 10))
    ahead = (queries @ candidates.T >= (queries @ candidates.T).gather(1, targets[:, None])).sum(1) - 1
    assert found == {f"R@{k}": (ahead < k).double().mean().item() for k in (1, 5, 10)}
    monkeypatch.setattr(retrieval, "BLOCK", 7)
    assert found == recall_at_k(queries, candidates, targets, (1, 5, 10))
    assert found == recall_at_k(queries, candidates, pairs, (1, 5, 10))
    assert all(map(math.isnan, recall_at_k(queries, candidates, pairs[:0]).values()))
