"""LoRA: train low-rank additions to the linear maps of a trained CLIP instead of all its weights.

    W + B·A,    A (r, inputs) random, B (outputs, r) zero at first     (Hu et al. 2022, arXiv:2106.09685, equation 3)

The adapters are peft's, and a saved adapter is read by ``peft.PeftModel.from_pretrained(clip, folder)``. Two steps
work on a state dict where peft works on a live model: :func:`merge_adapters` (``merge_and_unload`` would end the
training of the model that it merges) and :func:`save_adapter`. What is saved may be the averaged weights, the best
checkpoint, or weights gathered from several processes, and no live model holds these.

The query, key, value and output projections and the perceptron of every transformer block in both towers get adapters;
the two projections into the common space and the temperature are trained as they are. The paper's factor α / r is 1:
with Adam it only rescales the learning rate (section 4.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from clip_guidance.clip.model import CLIP
from clip_guidance.towers.layers import EncoderLayer

if TYPE_CHECKING:
    from peft import LoraConfig

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
HEADS = ("text_projection.weight", "visual_projection.weight", "logit_scale")  # trained without adapters
ADAPTER_FILE, HEADS_FILE = "adapter_model.safetensors", "heads.safetensors"
PEFT_PREFIX = "base_model.model."  # of the names in peft's files


def add_lora(clip: CLIP, rank: int) -> LoraConfig:
    """Add adapters to a CLIP, in place.

    Everything but the adapters, the projections and the temperature is frozen. The embeddings stay the same, bit for
    bit, until the first step of training. The adapters are drawn from torch's global random state.

    Args:
        clip: Both of its towers must be made of transformer blocks.
        rank: Rank r of the additions, at least 1.

    Returns:
        peft's settings of the adapters, which :func:`save_adapter` saves with them.

    Raises:
        ImportError: The package peft is not installed.
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
        r=rank, lora_alpha=rank, target_modules=list(TARGET_MODULES), base_model_name_or_path=clip.name_or_path
    )
    peft.inject_adapter_in_model(config, clip)
    for name in HEADS:
        clip.get_parameter(name).requires_grad_(True)
    return config


def merge_adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge the adapters in a CLIP's state dict: W + B·A takes the place of W.

    Args:
        state: Of a CLIP to which :func:`add_lora` added adapters.

    Returns:
        A state dict that a CLIP without adapters loads.
    """
    result = {}
    for key, value in state.items():
        layer = key.removesuffix(".base_layer.weight")
        if layer != key:
            value = value + state[f"{layer}.lora_B.default.weight"] @ state[f"{layer}.lora_A.default.weight"]
        if ".lora_" not in key:
            result[key.replace(".base_layer.", ".")] = value
    return result


def save_adapter(state: Mapping[str, Tensor], config: LoraConfig, folder: str | Path) -> None:
    """Save the adapters in peft's format, and ``heads.safetensors`` beside them.

    The latter holds the projections and the temperature, which were trained without adapters.

    Args:
        state: State dict of a CLIP with adapters.
        config: What :func:`add_lora` returned.
        folder: Created where it does not exist.
    """
    folder = Path(folder)
    config.save_pretrained(str(folder))
    adapters = {PEFT_PREFIX + key.replace(".default.", "."): value for key, value in state.items() if ".lora_" in key}
    for name, tensors in ((ADAPTER_FILE, adapters), (HEADS_FILE, {name: state[name] for name in HEADS})):
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name, {"format": "pt"})
