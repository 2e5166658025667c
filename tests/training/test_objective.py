"""Chunks and processes change nothing: gradients are those of one process with the whole batch, and drawn alike."""

import copy

import pytest
import torch
from helpers.factories import TEXTS, make_clip
from helpers.processes import spawned
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from clip_guidance.loss.contrastive import contrastive_loss
from clip_guidance.training.augment import random_views
from clip_guidance.training.class_name_loss import ClassNameLoss
from clip_guidance.training.objective import ContrastiveObjective, caption_groups, random_state

CAPTIONS = (TEXTS * 3)[:8]  # each of the four is somewhere twice


def batch():
    """The ids are letters: a vocabulary that is trained anew in another process has another order."""
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokenizer = make_clip().tokenizer
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = [[bos, *(ord(letter) - 32 for letter in caption[:11]), eos] for caption in CAPTIONS]
    return images, torch.tensor(rows), caption_groups(CAPTIONS)


def dropping_clip(image="vit", text="transformer"):
    """In float64, with dropout in both halves."""
    clip = make_clip(image, text).double().train()
    for name in ("visual_projection", "text_projection"):
        setattr(clip, name, nn.Sequential(getattr(clip, name), nn.Dropout(0.3)))
    return clip


def objective(**options):
    return ContrastiveObjective(dropping_clip(), augment=random_views, **options)


def grads(module, loss):
    loss.backward()
    found = {}
    for name, parameter in module.named_parameters():
        grad = parameter.grad
        found[name] = None if grad is None else (grad.full_tensor() if isinstance(grad, DTensor) else grad).clone()
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    largest = max(grad.abs().max() for grad in expected.values() if grad is not None)
    for name, grad in expected.items():
        if grad is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(
                found[name],
                grad,
                rtol=1e-12,
                atol=1e-13 * float(largest),
                msg=lambda text, name=name: f"{name}: {text}",
            )


def test_without_chunks_it_is_the_plain_loss():
    clip = make_clip().double()
    images, input_ids, groups = batch()
    plain = contrastive_loss(clip.image_embeds(images), clip.text_embeds(input_ids), clip.logit_scale, groups)
    expected = grads(clip, plain)
    clip.zero_grad()
    loss = ContrastiveObjective(clip)(images, input_ids, groups)
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
    assert_same(grads(clip, loss), expected)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"positives": "all"}, {"loss": "sigmoid"}])
def test_chunks_change_nothing_where_nothing_is_drawn(options):
    clip = make_clip().double()
    results = []
    for chunk_size in (None, 1, 2, 8):
        module = ContrastiveObjective(copy.deepcopy(clip), chunk_size=chunk_size, **options).double()
        loss = module(*batch())
        results.append((loss.detach(), grads(module, loss)))
    for loss, found in results[1:]:
        torch.testing.assert_close(loss, results[0][0], rtol=1e-12, atol=0)
        assert_same(found, results[0][1])


def test_a_chunk_that_runs_again_draws_the_same():
    """The gradient is that of the chunks' own draws, kept here instead of drawn twice."""
    module = objective(chunk_size=2)
    images, input_ids, groups = batch()
    found = grads(module, module(images, input_ids, groups, seed=5))
    module.zero_grad()
    clip, embeds = module.clip, {"image": [], "text": []}
    for place in range(4):
        rows = slice(2 * place, 2 * place + 2)
        with random_state(f"image-5-{place}", torch.device("cpu")):
            embeds["image"].append(clip.image_embeds(random_views(images[rows])))
        with random_state(f"text-5-{place}", torch.device("cpu")):
            embeds["text"].append(clip.text_embeds(input_ids[rows]))
    plain = contrastive_loss(torch.cat(embeds["image"]), torch.cat(embeds["text"]), clip.logit_scale, groups)
    assert_same(found, grads(module, plain))


def test_draws_follow_the_seed_and_leave_the_global_state_alone():
    module = objective(chunk_size=4)
    state = torch.get_rng_state()
    one, again, other = (module(*batch(), seed=seed).item() for seed in (3, 3, 4))
    assert one == again != other
    assert torch.get_rng_state().equal(state)


def test_chunks_hold_no_activations():
    """Saved for the backward pass is less with chunks, and no more with twice the layers."""

    def saved_bytes(layers, chunk_size):
        clip = make_clip().train()
        encoder = clip.image_encoder.vision_model.encoder
        encoder.layers = nn.ModuleList(copy.deepcopy(encoder.layers[0]) for _ in range(layers))
        total = 0

        def pack(x):
            nonlocal total
            total += x.numel() * x.element_size()
            return x

        module = ContrastiveObjective(clip, chunk_size=chunk_size)
        images, *rest = batch()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            module(images.float(), *rest)
        return total

    assert saved_bytes(4, 2) == saved_bytes(8, 2) < 0.2 * saved_bytes(4, None) < 0.2 * saved_bytes(8, None)


def test_batch_norm_is_never_silently_another_model():
    clip = make_clip("resnet").double().train()
    with pytest.raises(
        ValueError, match=r"stem\S*: BatchNorm would normalise each of 4 chunks on 1 processes by itself"
    ):
        ContrastiveObjective(clip, chunk_size=2)(*batch())
    ContrastiveObjective(clip)(*batch())  # one chunk on one process is the whole batch
    before = copy.deepcopy(clip.state_dict())
    losses = [
        ContrastiveObjective(clip, chunk_size=size, freeze_batch_norm=True).train()(*batch()) for size in (2, None)
    ]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    assert all(value.equal(before[name]) for name, value in clip.state_dict().items())


def test_bad_arguments_are_named():
    clip = make_clip().double()
    with pytest.raises(ValueError, match="loss: expected one of softmax, sigmoid, got 'hinge'"):
        ContrastiveObjective(clip, loss="hinge")
    with pytest.raises(ValueError, match="chunk_size: expected at least 1 pair, got 0"):
        ContrastiveObjective(clip, chunk_size=0)
    with pytest.raises(ValueError, match="expected a multiple of chunk_size 3 pairs on every process, got 8"):
        ContrastiveObjective(clip, chunk_size=3)(*batch())


def test_captions_have_the_same_group_everywhere():
    groups = caption_groups(CAPTIONS)
    assert groups.dtype == torch.int64 and len(groups.unique()) == len(set(CAPTIONS))
    assert caption_groups(CAPTIONS[::-1]).equal(groups.flip(0))


# ---------------------------------------------------------------- several processes

VARIANTS = {"softmax": {}, "all": {"positives": "all"}, "sigmoid": {"loss": "sigmoid"}}
NAME_INDICES = torch.tensor([0, 1, 2, 3, 3, 2, 0, 4])  # of names that its eight images bear


def named_objective(**options):
    """One whose text encoder is locked, with a loss over five names."""
    clip = dropping_clip()
    clip.text_encoder.requires_grad_(False)
    names = ClassNameLoss(clip, ["apple", "cat", "table", "red", "green"])
    # not what was read: a vocabulary that is trained anew in another process has another order
    names.pooled = torch.randn(names.pooled.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    options |= {"augment": random_views, "class_name_loss": names, "class_name_loss_weight": 0.5}
    return ContrastiveObjective(clip, **options).double()


def distributed_grads(rank, size):
    """Of each variant under DDP, and of the first under FSDP2."""
    rows = slice(rank * 8 // size, (rank + 1) * 8 // size)
    own = [part[rows] for part in batch()]
    found = {}
    for name, options in VARIANTS.items():
        module = objective(chunk_size=1, **options).double()
        parallel = DistributedDataParallel(module)
        found[name] = grads(module, parallel(*own, seed=7))
    module = named_objective(chunk_size=1)
    parallel = DistributedDataParallel(module)  # kept: one that is thrown away no longer averages
    loss = parallel(*own, NAME_INDICES[rows], seed=7)
    found["names"], found["names loss"] = grads(module, loss), loss.detach()
    module = sharded(objective(chunk_size=1).double(), size)
    found["sharded"] = grads(module, module(*own, seed=7))
    return found


def sharded(module, size):
    """Under FSDP2, each layer by itself."""
    mesh = init_device_mesh("cpu", (size,))
    for encoder in (module.clip.image_encoder.vision_model.encoder, module.clip.text_encoder.text_model.encoder):
        for layer in encoder.layers:
            fully_shard(layer, mesh=mesh)
    return fully_shard(module, mesh=mesh)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_every_gradient_is_that_of_one_process(size):
    """Of every parameter, the temperature included, with chunks, views and dropout, under DDP and FSDP2."""
    results = spawned(size, distributed_grads)
    for name, options in {**VARIANTS, "sharded": {}}.items():
        module = objective(chunk_size=1, **options).double()
        expected = grads(module, module(*batch(), seed=7))
        assert expected["clip.logit_scale"].abs() > 0
        for result in results:
            assert_same(result[name], expected)
    module = named_objective(chunk_size=1)
    loss = module(*batch(), NAME_INDICES, seed=7)
    expected = grads(module, loss)
    for result in results:
        assert_same(result["names"], expected)
        torch.testing.assert_close(result["names loss"], loss.detach(), rtol=1e-12, atol=0)


def batch_norm_on_each(rank, size):
    try:
        ContrastiveObjective(make_clip("resnet").double().train())(*batch())
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_batch_norm_is_refused_on_several_processes():
    for message in spawned(2, batch_norm_on_each):
        assert "BatchNorm would normalise each of 1 chunks on 2 processes by itself" in message
