"""Muon: what it makes of singular values, of kernels, and of what it leaves to AdamW."""

import pytest
import torch
from torch import nn

from clip_guidance.training import muon


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (9, 9)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.linspace(0.3, 3, min(shape))
    found = u.T @ muon.orthogonal(u * values @ v) @ v.T
    assert ((found.diag() > 0.6) & (found.diag() < 1.3)).all()
    torch.testing.assert_close(found - found.diag().diag(), torch.zeros_like(found), atol=1e-4, rtol=0)


def test_a_matrix_moves_as_under_the_one_of_torch():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon came with torch 2.9")
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(8, 12)) for _ in range(2))
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}
    peer = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options)
    optimizer = muon.Muon([ours], **options)
    for _ in range(4):
        ours.grad = torch.randn(8, 12)
        theirs.grad = ours.grad.clone()
        optimizer.step(), peer.step()
    torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0)  # theirs iterates in bfloat16


def test_a_kernel_moves_as_the_matrix_of_its_rows():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))
    matrix = nn.Parameter(kernel.detach().reshape(8, 36).clone())
    optimizer = muon.Muon([kernel, matrix], lr=0.1)
    kernel.grad = torch.randn(8, 4, 3, 3)
    matrix.grad = kernel.grad.reshape(8, 36)
    optimizer.step()
    torch.testing.assert_close(kernel.reshape(8, 36), matrix)


@pytest.mark.parametrize("shape", [(16,), (3, 24, 3, 3)])
def test_all_else_moves_as_under_adamw(shape):
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    options = {"lr": 0.1, "betas": (0.9, 0.98), "weight_decay": 0.2}
    optimizer, peer = muon.Muon([ours], **options), torch.optim.AdamW([theirs], **options)
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        optimizer.step(), peer.step()
    torch.testing.assert_close(ours, theirs)


def test_a_closure_is_called_and_no_gradient_moves_nothing():
    parameter = nn.Parameter(torch.ones(4, 4))
    assert muon.Muon([parameter]).step(lambda: 3.0) == 3.0
    assert parameter.eq(1).all()
