"""What is done to the towers for the time of training: blocks that run twice, and an image tower that does not run."""

import copy

import pytest
import torch
from helpers.factories import TEXTS, make_clip

from clip_guidance.clip import CLIP
from clip_guidance.clip.tokenizer import tokenize
from clip_guidance.towers.layers import EncoderLayer
from clip_guidance.training.efficiency import checkpoint_blocks, set_patch_dropout
from clip_guidance.training.frozen_embeds import cached_image_embeds
from clip_guidance.training.objective import ContrastiveObjective


def images(dtype=torch.float64, seed=1):
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def grads(module, loss):
    loss.backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    largest = float(max(grad.abs().max() for grad in expected.values() if grad is not None))
    for name, grad in expected.items():
        if grad is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(
                found[name], grad, rtol=1e-12, atol=1e-13 * largest, msg=lambda text, name=name: f"{name}: {text}"
            )


# Gradient checkpointing


def enable(model):
    """The method of transformers, which has another name from one version to the next."""
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)(
        {"use_reentrant": False}
    )


def runs_of(clip):
    """Counts how often the perceptron of each block runs."""
    counts = {}
    for name, module in clip.named_modules():
        if name.endswith("mlp.fc1"):
            module.register_forward_hook(lambda *_, name=name: counts.update({name: counts.get(name, 0) + 1}))
    return counts


@pytest.mark.parametrize("how", [enable, checkpoint_blocks])
def test_blocks_run_twice_and_the_gradients_are_the_same(how):
    plain = make_clip().double().train()
    clip = copy.deepcopy(plain)
    how(clip)
    counts = runs_of(clip)
    inputs = tokenize(clip.tokenizer, TEXTS), images()
    expected = grads(plain, plain(*inputs, return_loss=True).loss)
    assert_same(grads(clip, clip(*inputs, return_loss=True).loss), expected)
    assert set(counts.values()) == {2} and len(counts) == 5
    counts.clear()
    clip.eval()(*inputs, return_loss=True).loss.backward()
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("tower", ["image_encoder", "text_encoder"])
def test_a_tower_alone_is_checkpointed_by_the_method_of_transformers(tower):
    plain = getattr(make_clip().double().train(), tower)
    model = copy.deepcopy(plain)
    enable(model)
    inputs = images() if tower == "image_encoder" else tokenize(make_clip().tokenizer, TEXTS)
    counts = runs_of(model)
    expected = grads(plain, plain(inputs).pooler_output.sin().sum())
    assert_same(grads(model, model(inputs).pooler_output.sin().sum()), expected)
    assert set(counts.values()) == {2}


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_checkpointed_blocks_within_chunks(chunk_size):
    """Two levels of running again, with patches left out: the draws are the same each time."""
    plain = make_clip().double().train()
    set_patch_dropout(plain, 0.5)
    clip = copy.deepcopy(plain)
    checkpoint_blocks(clip)
    inputs = images(), tokenize(clip.tokenizer, TEXTS)
    results = []
    for model in (plain, clip):
        objective = ContrastiveObjective(model, chunk_size=chunk_size)
        results.append(grads(objective, objective(*inputs, seed=3)))
    assert_same(results[1], results[0])


def test_checkpointed_blocks_keep_less():
    def saved_bytes(checkpointing):
        clip = make_clip().train()
        if checkpointing:
            checkpoint_blocks(clip)
        total = 0

        def pack(x):
            nonlocal total
            total += x.numel() * x.element_size()
            return x

        def hold(module, args):  # what a checkpoint keeps by itself, the input of its block
            pack(args[0])

        for module in clip.modules():
            if isinstance(module, EncoderLayer) and checkpointing:
                module.register_forward_pre_hook(hold)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            clip(tokenize(clip.tokenizer, TEXTS), images(torch.float32), return_loss=True)
        return total

    assert saved_bytes(True) < 0.4 * saved_bytes(False)


def test_frozen_towers_are_not_run_again():
    clip = make_clip().train()
    clip.text_encoder.requires_grad_(False)
    checkpoint_blocks(clip)
    counts = runs_of(clip)
    clip(tokenize(clip.tokenizer, TEXTS), images(torch.float32), return_loss=True).loss.backward()
    assert {name.split(".")[0]: count for name, count in counts.items()} == {"image_encoder": 2, "text_encoder": 1}


def test_towers_without_transformer_blocks_are_named():
    with pytest.raises(ValueError, match="expected a tower of transformer blocks, got ResNetModel, CBOWTextModel"):
        checkpoint_blocks(make_clip("resnet", "cbow"))
    checkpoint_blocks(make_clip("resnet", "transformer"))  # one is enough


# A locked image tower


@pytest.mark.parametrize("image", ["vit", "resnet"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_cached_embeddings_give_the_loss_of_the_locked_tower(image, chunk_size, tmp_path):
    clip = make_clip(image).double()
    for part in (clip.image_encoder, clip.visual_projection):
        part.requires_grad_(False)
    raw = (255 * images(torch.float32)).round().to(torch.uint8)
    embeds = cached_image_embeds(clip, raw, tmp_path / "embeds.safetensors", batch_size=3)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0)
    input_ids = tokenize(clip.tokenizer, TEXTS)
    views = clip.image_processor.differentiable
    uncached = ContrastiveObjective(clip.eval(), augment=views, chunk_size=chunk_size)  # a locked tower does not train
    loss = uncached(raw.double() / 255, input_ids)
    expected = grads(clip, loss)
    clip.zero_grad()
    cached = ContrastiveObjective(clip, cached_images=True, chunk_size=chunk_size).train()
    assert clip.text_encoder.training and not any(module.training for module in clip.image_encoder.modules())
    clip.image_encoder.register_forward_hook(lambda *_: pytest.fail("the image tower was run"))
    again = cached(embeds, input_ids)
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=0)
    found = grads(clip, again)
    assert_same(found, expected)
    assert found["logit_scale"] is not None and found["visual_projection.weight"] is None


def test_the_cache_is_of_one_clip_and_these_images(tmp_path, monkeypatch):
    clip, path = make_clip("resnet").train(), tmp_path / "new" / "embeds.safetensors"
    one, other = ((255 * images(torch.float32, seed)).to(torch.uint8) for seed in (1, 2))  # as many of each
    runs = []
    monkeypatch.setattr(CLIP, "image_embeds", lambda self, x, known=CLIP.image_embeds: runs.append(1) or known(self, x))
    first = cached_image_embeds(clip, one, path)
    assert len(runs) == 1 and clip.training and [file.name for file in path.parent.iterdir()] == [path.name]
    assert cached_image_embeds(clip, one, path).equal(first) and len(runs) == 1
    second = cached_image_embeds(clip, other, path)
    assert len(runs) == 2 and not second.equal(first)
    assert cached_image_embeds(clip, other, path).equal(second) and len(runs) == 2  # replaced
    with torch.no_grad():
        clip.visual_projection.weight[0] += 1
    third = cached_image_embeds(clip, other, path)
    assert len(runs) == 3 and not third.equal(second)
    path.write_bytes(path.read_bytes()[:100])  # damaged
    assert cached_image_embeds(clip, other, path).equal(third) and len(runs) == 4
