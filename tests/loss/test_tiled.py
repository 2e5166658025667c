"""The tiled losses equal the plain ones and definitions written out, whatever the tile and the number of processes."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers.processes import spawned

from clip_guidance.loss.contrastive import contrastive_loss
from clip_guidance.loss.sigmoid import sigmoid_loss
from clip_guidance.loss.tiled import tiled_contrastive_loss

GROUPS = torch.tensor([0, 1, 2, 0, 3, 1, 0, 4, 5, 5, 6, 7])


def pairs(count=12, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(count, dim, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [*values, torch.tensor([2.0], dtype=torch.float64)]


def value_and_grads(loss, inputs, **options):
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = loss(*leaves, **options)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def written_out(images, texts, logit_scale, groups):
    """UniCL: every text of the group is right, each a share of it."""
    logits = logit_scale.exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    right = (groups[:, None] == groups).double()
    right = right / right.sum(1, keepdim=True)
    rows, columns = -(right * logits.log_softmax(1)).sum(1), -(right * logits.log_softmax(0)).sum(0)
    return (rows.mean() + columns.mean()) / 2


@pytest.mark.parametrize("tile", [1, 30, 10_000])
@pytest.mark.parametrize("groups", [None, GROUPS, torch.zeros(12, dtype=torch.long)])
def test_equals_the_plain_loss(tile, groups):
    plain = value_and_grads(contrastive_loss, pairs(), groups=groups)
    tiled = value_and_grads(tiled_contrastive_loss, pairs(), groups=groups, tile=tile)
    for one, other in zip(tiled, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("tile", [1, 30, 10_000])
def test_equals_the_loss_of_several_positives(tile):
    plain = value_and_grads(written_out, pairs(), groups=GROUPS)
    tiled = value_and_grads(tiled_contrastive_loss, pairs(), groups=GROUPS, positives="all", tile=tile)
    for one, other in zip(tiled, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_gradients_are_those_of_finite_differences():
    inputs = [x.requires_grad_() for x in pairs(6, 3)]

    def loss(images, texts, logit_scale):
        return tiled_contrastive_loss(images, texts, logit_scale, GROUPS[:6], tile=8)

    assert torch.autograd.gradcheck(loss, inputs)


def test_logits_of_a_hundred_do_not_overflow():
    """At the largest temperature a column whose best logit is far below another's is not lost."""
    images, texts, _ = pairs(8, 4)
    scale = torch.tensor([math.log(100.0)])
    inputs = [images.float(), -images.float() + 1e-3 * texts.float(), scale]  # the right one is the worst
    for one, other in zip(
        value_and_grads(tiled_contrastive_loss, inputs, tile=9), value_and_grads(contrastive_loss, inputs), strict=True
    ):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_above_its_limit_the_temperature_has_no_gradient():
    images, texts, _ = pairs()
    *_, grad = value_and_grads(tiled_contrastive_loss, [images, texts, torch.tensor([5.0], dtype=torch.float64)])
    assert grad.item() == 0


def test_half_precision_is_computed_in_float32_under_autocast_too():
    inputs = [x.bfloat16() for x in pairs(64, 16)]
    expected = contrastive_loss(*(x.float() for x in inputs))
    with torch.autocast("cpu", torch.bfloat16):
        found = tiled_contrastive_loss(*inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_bad_arguments_are_named():
    images, texts, scale = pairs()
    with pytest.raises(ValueError, match=r"one shape \(N, d\), got \(12, 5\) and \(11, 5\)"):
        tiled_contrastive_loss(images, texts[1:], scale)
    with pytest.raises(ValueError, match=r"expected groups of shape \(12,\), one entry per pair, got \(3,\)"):
        tiled_contrastive_loss(images, texts, scale, GROUPS[:3])
    with pytest.raises(ValueError, match='positives: expected "own" or "all", got \'some\''):
        tiled_contrastive_loss(images, texts, scale, positives="some")


# ---------------------------------------------------------------- the sigmoid loss


def siglip(images, texts, logit_scale, logit_bias, groups=None):
    """Algorithm 1 of the paper."""
    groups = torch.arange(len(images)) if groups is None else groups
    logits = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T * logit_scale.exp() + logit_bias
    signs = torch.where(groups[:, None] == groups, 1.0, -1.0)
    return -F.logsigmoid(signs * logits).sum() / len(images)


@pytest.mark.parametrize("tile", [1, 30, 10_000])
@pytest.mark.parametrize("groups", [None, GROUPS])
def test_equals_the_sigmoid_loss(tile, groups):
    inputs = [*pairs(), torch.tensor([-3.0], dtype=torch.float64)]
    plain = value_and_grads(siglip, inputs, groups=groups)
    tiled = value_and_grads(sigmoid_loss, inputs, groups=groups, tile=tile)
    for one, other in zip(tiled, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


# ---------------------------------------------------------------- several processes


def share_of_the_batch(rank, size):
    """What data parallelism hands to the parameters: the mean over the processes of each one's gradients."""
    found = {}
    for positives in ("own", "all"):
        images, texts, scale = pairs()
        leaf = [x.requires_grad_() for x in (images, texts, scale)]
        own = slice(rank * 12 // size, (rank + 1) * 12 // size)
        value = tiled_contrastive_loss(leaf[0][own], leaf[1][own], scale, GROUPS[own], positives=positives, tile=20)
        grads = torch.autograd.grad(value, leaf)
        for grad in grads:
            dist.all_reduce(grad)
        found[positives] = [x.tolist() for x in (value.detach(), *(grad / size for grad in grads))]
    bias = BIAS.clone().requires_grad_()
    value = sigmoid_loss(leaf[0][own], leaf[1][own], scale, bias, GROUPS[own], tile=20)
    grads = torch.autograd.grad(value, [*leaf, bias])
    for grad in grads:
        dist.all_reduce(grad)
    found["sigmoid"] = [x.tolist() for x in (value.detach(), *(grad / size for grad in grads))]
    return found


BIAS = torch.tensor([-3.0], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_processes_get_the_gradients_of_one_with_the_whole_batch(size):
    results = spawned(size, share_of_the_batch)
    for positives in ("own", "all"):
        alone = value_and_grads(tiled_contrastive_loss, pairs(), groups=GROUPS, positives=positives)
        for result in results:
            for one, other in zip(result[positives], alone, strict=True):
                torch.testing.assert_close(torch.tensor(one, dtype=torch.float64), other, rtol=1e-12, atol=1e-14)
    alone = value_and_grads(sigmoid_loss, [*pairs(), BIAS], groups=GROUPS)
    for result in results:
        for one, other in zip(result["sigmoid"], alone, strict=True):
            torch.testing.assert_close(torch.tensor(one, dtype=torch.float64), other, rtol=1e-12, atol=1e-14)


def unequal_shares(rank, size):
    images, texts, scale = pairs(4 + rank)
    try:
        tiled_contrastive_loss(images, texts, scale)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_unequal_batches_are_refused():
    messages = spawned(2, unequal_shares)
    assert messages == ["expected as many pairs on every process, got [4, 5]: drop the last, short batch"] * 2
