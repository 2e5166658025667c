"""LoRA changes nothing before it is trained, trains little, and can be put into the weights."""

import contextlib
import sys

import peft
import pytest
import torch
from accelerate import Accelerator
from helpers.factories import TEXTS, make_clip, save_tiny_clip, with_adapter
from safetensors.torch import load_file

from clip_guidance.clip import CLIP
from clip_guidance.clip.lora import HEADS, TARGET_MODULES, add_lora, merge_adapters, save_adapter
from clip_guidance.clip.tokenizer import tokenize
from clip_guidance.training.objective import ContrastiveObjective
from clip_guidance.training.trainer import Plan, fit

RANK = 3


@pytest.fixture(scope="module")
def hub_clip(tmp_path_factory):
    """The folder of a CLIP of transformers, as those on the hub are."""
    return save_tiny_clip(tmp_path_factory.mktemp("hub"))


def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def embeddings(clip):
    return clip.encode_text(TEXTS), clip.encode_image(list(images()))


def train(clip, folder, steps=3, killed_after=None):
    """Trains up to ``steps``, or is killed one step after a checkpoint."""

    class Killed(Exception):
        pass

    def after_step(done):
        if done == killed_after:
            raise Killed
        return {}

    def loss(model, step):
        noise = 0.1 * torch.randn(4, 3, 32, 32)  # from the state that the loop sets
        return {"loss": model(images() + noise, tokenize(clip.tokenizer, TEXTS))}

    plan = Plan(steps, 0.01, 0, 0.01, 1.0, seed=3, log_every=1, save_every=1)
    with contextlib.suppress(Killed):
        fit(Accelerator(), ContrastiveObjective(clip.train()), loss, plan, folder, after_step=after_step)
    return clip.eval()


def adapted(folder, seed=0):
    clip = CLIP.from_pretrained(folder)
    torch.manual_seed(seed)
    return clip, add_lora(clip, RANK)


def test_nothing_changes_before_training(hub_clip):
    clip = CLIP.from_pretrained(hub_clip)
    before = embeddings(clip)
    add_lora(clip, RANK)
    assert all(a.equal(b) for a, b in zip(embeddings(clip), before, strict=True))


def test_every_linear_map_of_a_block_has_an_adapter_of_that_rank(hub_clip):
    clip, _ = adapted(hub_clip)
    downs = {name: value for name, value in clip.state_dict().items() if ".lora_A." in name}
    blocks = [f"image_encoder.vision_model.encoder.layers.{i}" for i in range(2)]
    blocks += [f"text_encoder.text_model.encoder.layers.{i}" for i in range(2)]
    parts = [f"{'mlp' if target.startswith('fc') else 'self_attn'}.{target}" for target in TARGET_MODULES]
    assert set(downs) == {f"{block}.{part}.lora_A.default.weight" for block in blocks for part in parts}
    assert all(value.shape == (RANK, 32 if "fc2" in name else 16) for name, value in downs.items())
    trained = {name for name, parameter in clip.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in clip.state_dict() if ".lora_" in name} | set(HEADS)


def test_only_the_adapters_the_projections_and_the_temperature_move(hub_clip, tmp_path):
    clip, _ = adapted(hub_clip)
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    train(clip, tmp_path)
    moved = {name for name, value in clip.state_dict().items() if not value.equal(before[name])}
    assert moved == {name for name in before if ".lora_" in name} | set(HEADS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # which peft asks for
def test_the_merged_clip_is_the_adapted_one(hub_clip, tmp_path):
    clip, config = adapted(hub_clip)
    train(clip, tmp_path / "run")
    plain = CLIP.from_pretrained(hub_clip)
    old = embeddings(plain)
    plain.load_state_dict(merge_adapters(clip.state_dict()))
    for found, expected, unadapted in zip(embeddings(plain), embeddings(clip), old, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert (found - unadapted).abs().max() > 1e-3
    save_adapter(clip.state_dict(), config, tmp_path / "adapter")
    other = with_adapter(CLIP.from_pretrained(hub_clip), tmp_path / "adapter")
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # which peft asks for
def test_the_adapter_is_small_and_peft_reads_it(hub_clip, tmp_path):
    clip, config = adapted(hub_clip)
    train(clip, tmp_path / "run")
    save_adapter(clip.state_dict(), config, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir() if path.suffix not in (".md",)} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "heads.safetensors",
    }
    base = CLIP.from_pretrained(hub_clip)
    read = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload()
    expected = merge_adapters(clip.state_dict()) | {name: base.state_dict()[name] for name in HEADS}  # peft has none
    for name, value in read.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
    assert load_file(tmp_path / "adapter" / "heads.safetensors").keys() == set(HEADS)


@pytest.mark.slow
def test_a_killed_run_continues_bit_for_bit(hub_clip, tmp_path):
    whole = train(adapted(hub_clip)[0], tmp_path / "whole")
    train(adapted(hub_clip)[0], tmp_path / "killed", killed_after=2)
    resumed = train(adapted(hub_clip, seed=7)[0], tmp_path / "killed")  # its own draws are overwritten
    for name, value in whole.state_dict().items():
        assert resumed.state_dict()[name].equal(value), name
    steps = [path.stem for path in sorted((tmp_path / "killed" / "checkpoints").iterdir())]
    assert steps == ["step-2", "step-3"]


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(ValueError, match="lora_rank: expected at least 1, got 0"):
        add_lora(make_clip(), 0)
    with pytest.raises(ValueError, match="LoRA: expected towers of transformer blocks, got CBOWTextModel"):
        add_lora(make_clip("vit", "cbow"), 2)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'pip install "clip-guidance\[lora\]"'):
        add_lora(make_clip(), 2)
