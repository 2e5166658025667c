"""LoRA: the linear maps of a trained CLIP get an addition of low rank, and that alone is trained.

    W + B·A,    A (r, inputs) random, B (outputs, r) zero at first     (Hu et al. 2022, arXiv:2106.09685, equation 3)

Adapted are the query, key, value and output projections and the perceptron of every transformer block in both towers;
trained besides are the two projections into the common space and the temperature. The paper's factor α / r is 1: with
Adam it only rescales the learning rate (section 4.1).

The adapters are peft's. What is saved is plain tensors: the CLIP with the additions in its weights, which nothing tells
from another, and the adapter alone, in peft's format and small.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clip_guidance.clip import CLIP
from clip_guidance.towers.layers import EncoderLayer

if TYPE_CHECKING:
    from peft import LoraConfig

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
HEADS = ("text_projection.weight", "visual_projection.weight", "logit_scale")  # trained besides
ADAPTER, ADAPTER_CONFIG, HEAD_FILE = "adapter_model.safetensors", "adapter_config.json", "heads.safetensors"
PREFIX = "base_model.model."  # of the names in peft's files


def add_lora(clip: CLIP, rank: int) -> LoraConfig:
    """Adds adapters to a CLIP, in place, and freezes all but them, the projections and the temperature.

    The embeddings stay as they are, bit for bit, until the first step of training. Draws from torch's global random
    state.

    Args:
        clip: both of its towers made of transformer blocks.
        rank: r, at least 1.

    Returns:
        peft's settings of the adapters, to be saved with them.

    Raises:
        ImportError: peft is not installed.
        ValueError: ``rank`` is out of range, or a tower has no transformer block.
    """
    if rank < 1:
        raise ValueError(f"lora_rank: expected at least 1, got {rank}")
    for tower in (clip.image_encoder, clip.text_encoder):
        if not any(isinstance(module, EncoderLayer) for module in tower.modules()):
            raise ValueError(f"LoRA: expected towers of transformer blocks, got {type(tower).__name__}")
    try:
        import peft
    except ImportError as error:
        raise ImportError('LoRA needs peft: pip install "clip-guidance[lora]"') from error
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=list(TARGETS), base_model_name_or_path=clip.name_or_path
    )
    peft.inject_adapter_in_model(config, clip)
    for name in HEADS:
        clip.get_parameter(name).requires_grad_(True)
    return config


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a CLIP with adapters as that of one without: W + B·A under W's own name."""
    result = {}
    for key, value in state.items():
        layer = key.removesuffix(".base_layer.weight")
        if layer != key:
            value = value + state[f"{layer}.lora_B.default.weight"] @ state[f"{layer}.lora_A.default.weight"]
        if ".lora_" not in key:
            result[key.replace(".base_layer.", ".")] = value
    return result


def save_adapter(state: Mapping[str, Tensor], config: LoraConfig, folder: str | Path) -> None:
    """Writes the adapters in peft's format, and ``heads.safetensors``, the projections and the temperature.

    Args:
        state: of a CLIP with adapters.
        config: what :func:`add_lora` returned.
        folder: is made where it is not there.
    """
    folder = Path(folder)
    config.save_pretrained(str(folder))
    adapters = {PREFIX + key.replace(".default.", "."): value for key, value in state.items() if ".lora_" in key}
    for name, tensors in ((ADAPTER, adapters), (HEAD_FILE, {name: state[name] for name in HEADS})):
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name, {"format": "pt"})


@torch.no_grad()
def apply_adapter(clip: CLIP, folder: str | Path) -> None:
    """Adds a saved adapter to the weights of the CLIP it was trained on, in place; needs no peft.

    Args:
        clip: without adapters.
        folder: written by :func:`save_adapter`.

    Raises:
        FileNotFoundError: a file of the adapter is missing.
        ValueError: its shapes or layers are not those of this CLIP.
    """
    folder = Path(folder)
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    adapters, weights = load_file(folder / ADAPTER), clip.state_dict()
    changed = load_file(folder / HEAD_FILE)
    for key, down in adapters.items():
        if ".lora_A." in key:
            name = key.removeprefix(PREFIX).replace(".lora_A.", ".")
            addition = config["lora_alpha"] / config["r"] * adapters[key.replace(".lora_A.", ".lora_B.")] @ down
            if name not in weights or weights[name].shape != addition.shape:
                there = tuple(weights[name].shape) if name in weights else "no such layer"
                raise ValueError(
                    f"{folder}: {name}: expected the CLIP it was trained on, with {tuple(addition.shape)}, got {there}"
                )
            changed[name] = weights[name] + addition.to(weights[name])
    clip.load_state_dict({**weights, **changed})
