"""Part of a ViT's patches is left out in training: which, how many, and that nothing else changes."""

import copy

import pytest
import torch
from helpers.factories import make_clip
from torch import nn

from clip_guidance.clip import CLIP
from clip_guidance.loss.contrastive import contrastive_loss
from clip_guidance.towers.vit import VisionTransformer, ViTConfig, drop_patches
from clip_guidance.training.efficiency import set_patch_dropout
from clip_guidance.training.objective import ContrastiveObjective, random_state

PATCHES = 16  # of tests/tiny.py's ViT: 32 x 32 pixels in patches of 8


def images(count=3, dtype=torch.float32):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=dtype)


def vision_model(pooling, **options):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(image_size=32, patch_size=8, pooling=pooling, **sizes, **options)
    torch.manual_seed(0)
    return VisionTransformer(config).train()


@pytest.mark.parametrize("pooling", ["class", "mean"])
@pytest.mark.parametrize("stem", [None, [8, 8, 8]])
def test_evaluation_is_the_same_bit_for_bit(pooling, stem):
    model = vision_model(pooling, stem_widths=stem).eval()
    expected = model(images()).pooler_output
    model.patch_dropout = 0.5
    state = torch.get_rng_state()
    found = model(images())
    assert found.pooler_output.equal(expected) and found.last_hidden_state.shape[1] == 1 + PATCHES
    assert torch.get_rng_state().equal(state)  # nothing is drawn either


@pytest.mark.parametrize(("share", "kept"), [(0.5, 8), (0.25, 12), (0.9, 2), (0.99, 1), (0.01, 16)])
def test_the_blocks_see_as_many_tokens_as_is_said(share, kept):
    model = vision_model("class")
    seen = []
    for layer in model.encoder.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    model.patch_dropout = share
    model(images())
    assert seen == [1 + kept] * 2


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_what_is_left_is_the_class_token_and_some_patches_with_their_positions(pooling):
    """With blocks that do nothing, the states are rows of the embedded tokens, and the mean is theirs."""
    model = vision_model(pooling).double()
    model.pre_layrnorm = model.post_layernorm = nn.Identity()
    for layer in model.encoder.layers:
        for last in (layer.self_attn.out_proj, layer.mlp.fc2):  # x + 0
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    tokens = model.embeddings(images(dtype=torch.float64))
    model.patch_dropout = 0.5
    found = model(images(dtype=torch.float64))
    chosen = []
    for image, states in zip(tokens, found.last_hidden_state, strict=True):
        same = (states[:, None] == image[None]).all(-1)  # (kept, tokens)
        assert (same.sum(1) == 1).all() and same[0, 0]
        chosen.append(same.int().argmax(1))
        assert len(chosen[-1].unique()) == len(chosen[-1]) == 1 + PATCHES // 2
    means = torch.stack([image[rows].mean(0) for image, rows in zip(tokens, chosen, strict=True)])
    expected = means if pooling == "mean" else tokens[:, 0]
    torch.testing.assert_close(found.pooler_output, expected, rtol=1e-12, atol=1e-14)
    assert len({tuple(rows.sort().values.tolist()) for rows in chosen}) == 3  # each image has its own


def test_every_patch_is_kept_equally_often():
    tokens = torch.arange(1 + PATCHES, dtype=torch.float64)[None, :, None].expand(4000, -1, 1)
    torch.manual_seed(0)
    kept = drop_patches(tokens, 0.75)
    assert kept.shape == (4000, 5, 1) and (kept[:, 0] == 0).all()
    share = torch.bincount(kept[:, 1:].flatten().long(), minlength=1 + PATCHES)[1:] / 4000
    deviation = (0.25 * 0.75 / 4000) ** 0.5
    assert (share - 0.25).abs().max() < 5 * deviation


def test_draws_follow_the_global_random_state():
    model = vision_model("mean")
    model.patch_dropout = 0.5
    torch.manual_seed(3)
    one, other = (model(images()).pooler_output for _ in range(2))
    torch.manual_seed(3)
    assert model(images()).pooler_output.equal(one) and not one.equal(other)


def test_a_chunk_that_runs_again_leaves_out_the_same_patches():
    """The gradient is that of the chunks' own draws, kept here instead of drawn twice."""
    clip = make_clip().double().train()
    set_patch_dropout(clip, 0.5)
    x, input_ids = images(4, torch.float64), torch.randint(3, 40, (4, 6), generator=torch.Generator().manual_seed(2))
    input_ids[:, -1] = clip.tokenizer.eos_token_id
    plain = copy.deepcopy(clip)
    ContrastiveObjective(clip, chunk_size=2)(x, input_ids, seed=5).backward()
    embeds = []
    for place in range(2):
        with random_state(f"image-5-{place}", x.device):
            embeds.append(plain.image_embeds(x[2 * place : 2 * place + 2]))
    contrastive_loss(torch.cat(embeds), plain.text_embeds(input_ids), plain.logit_scale).backward()
    for (name, one), other in zip(clip.named_parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-13, msg=lambda text, n=name: n + text)


def test_it_is_not_saved(tmp_path):
    clip = make_clip()
    set_patch_dropout(clip, 0.5)
    clip.save_pretrained(tmp_path)
    assert "patch_dropout" not in (tmp_path / "config.json").read_text()
    assert CLIP.from_pretrained(tmp_path).image_encoder.vision_model.patch_dropout == 0


def test_mistakes_are_named():
    for share in (1, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"patch_dropout: expected a share in \[0, 1\), got {share}"):
            set_patch_dropout(make_clip(), share)
    with pytest.raises(ValueError, match="patch_dropout: expected a ViT as the image tower, got ResNetModel"):
        set_patch_dropout(make_clip("resnet"), 0.5)
