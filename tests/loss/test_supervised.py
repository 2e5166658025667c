"""The supervised contrastive loss is its definition, and its gradient the definition's."""

import math

import pytest
import torch
import torch.nn.functional as F

from clip_guidance.loss import supervised_contrastive_loss


def by_hand(embeds, groups, scale):
    """Write equation 2 of Khosla et al. as two loops."""
    units, terms = F.normalize(embeds, dim=1), []
    for i in range(len(units)):
        others = [j for j in range(len(units)) if j != i]
        positives = [j for j in others if groups[j] == groups[i]]
        if positives:
            total = sum(torch.exp(math.exp(scale) * units[i] @ units[j]) for j in others)
            logs = [math.exp(scale) * units[i] @ units[p] - total.log() for p in positives]
            terms.append(-sum(logs) / len(positives))
    return sum(terms) / len(terms)


def test_it_is_the_definition():
    embeds = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    groups, scale = torch.tensor([0, 1, 0, 2, 1, 0, 3]), torch.tensor(1.5, dtype=torch.float64)
    found, expected = supervised_contrastive_loss(embeds, groups, scale), by_hand(embeds, groups.tolist(), 1.5)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(x, embeds)[0] for x in (found, expected)), rtol=1e-9, atol=1e-12)


def test_without_any_positive_there_is_nothing_to_learn():
    embeds = torch.randn(4, 3, requires_grad=True)
    loss = supervised_contrastive_loss(embeds, torch.arange(4), torch.tensor(2.0))
    loss.backward()
    assert loss == 0 and (embeds.grad == 0).all()


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"expected embeds \(N, d\) and groups \(N,\), got \(4, 3\) and \(3,\)"):
        supervised_contrastive_loss(torch.ones(4, 3), torch.arange(3), torch.tensor(0.0))
