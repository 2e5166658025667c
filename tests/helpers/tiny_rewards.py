"""Tiny rewards of random weights: ImageReward under the names of its release."""

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertTokenizer

from clip_guidance.rewards.image_reward import CONTEXT

WIDTH, TEXT_WIDTH, LAYERS, SIDE, PATCH = 128, 64, 2, 32, 16
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "apple", "rocket", "green"]


def bert_tokenizer(folder: Path) -> BertTokenizer:
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return BertTokenizer(str(folder / "vocab.txt"))


def image_reward_weights() -> dict[str, Tensor]:
    """Random weights under the names of the authors' release."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "visual_encoder.cls_token": (1, 1, WIDTH),
        "visual_encoder.pos_embed": (1, 1 + (SIDE // PATCH) ** 2, WIDTH),
        "visual_encoder.patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "visual_encoder.patch_embed.proj.bias": (WIDTH,),
        "visual_encoder.norm.weight": (WIDTH,),
        "visual_encoder.norm.bias": (WIDTH,),
        "text_encoder.embeddings.word_embeddings.weight": (len(WORDS), TEXT_WIDTH),
        "text_encoder.embeddings.position_embeddings.weight": (CONTEXT, TEXT_WIDTH),
        "text_encoder.embeddings.LayerNorm.weight": (TEXT_WIDTH,),
        "text_encoder.embeddings.LayerNorm.bias": (TEXT_WIDTH,),
        "vision_proj.weight": (8, WIDTH),
        "text_proj.weight": (8, TEXT_WIDTH),
    }
    for layer in range(LAYERS):
        block = f"visual_encoder.blocks.{layer}."
        for name, rows, columns in (
            ("attn.qkv", 3 * WIDTH, WIDTH), ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 2 * WIDTH, WIDTH), ("mlp.fc2", WIDTH, 2 * WIDTH),
        ):  # fmt: skip
            shapes |= {f"{block}{name}.weight": (rows, columns), f"{block}{name}.bias": (rows,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}{name}.weight": (WIDTH,), f"{block}{name}.bias": (WIDTH,)}
        block = f"text_encoder.encoder.layer.{layer}."
        for attention, source in (("attention", TEXT_WIDTH), ("crossattention", WIDTH)):
            for name, columns in (("self.query", TEXT_WIDTH), ("self.key", source), ("self.value", source)):
                shapes |= {f"{block}{attention}.{name}.weight": (TEXT_WIDTH, columns)}
                shapes |= {f"{block}{attention}.{name}.bias": (TEXT_WIDTH,)}
            shapes |= {f"{block}{attention}.output.dense.weight": (TEXT_WIDTH, TEXT_WIDTH)}
            shapes |= {f"{block}{attention}.output.{part}": (TEXT_WIDTH,) for part in
                       ("dense.bias", "LayerNorm.weight", "LayerNorm.bias")}  # fmt: skip
        shapes |= {f"{block}intermediate.dense.weight": (96, TEXT_WIDTH), f"{block}intermediate.dense.bias": (96,)}
        shapes |= {f"{block}output.dense.weight": (TEXT_WIDTH, 96), f"{block}output.dense.bias": (TEXT_WIDTH,)}
        shapes |= {f"{block}output.LayerNorm.{part}": (TEXT_WIDTH,) for part in ("weight", "bias")}
    widths = [TEXT_WIDTH, 24, 16, 8, 4, 1]
    for number, (inputs, outputs) in zip((0, 2, 4, 6, 7), pairwise(widths), strict=True):
        shapes |= {f"mlp.layers.{number}.weight": (outputs, inputs), f"mlp.layers.{number}.bias": (outputs,)}
    drawn = {name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes.items()}
    drawn |= {name: 1 + tensor for name, tensor in drawn.items() if "norm" in name.lower() and "weight" in name}
    return {("" if name.startswith("mlp.") else "blip.") + name: tensor for name, tensor in drawn.items()}


def save_image_reward(folder: Path) -> Path:
    """Writes a tiny ImageReward with its tokenizer beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    bert_tokenizer(folder).save_pretrained(folder)
    save_file(image_reward_weights(), folder / "model.safetensors")
    return folder


def save_bert(folder: Path) -> Path:
    """Writes what ImageReward reads of BERT: its tokenizer, and a config by which transformers finds the class."""
    folder.mkdir(parents=True, exist_ok=True)
    bert_tokenizer(folder).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder
