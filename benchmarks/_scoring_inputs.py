"""Make a CLIP of random weights, photograph-like JPEG files and prompts whose scoring is timed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer


def save_clip(folder: Path, size: str) -> Path:
    """Save a transformers CLIP of random weights with a tokenizer of one token per letter."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer({token: i for i, token in enumerate(words)}, [], model_max_length=77)
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    layers, vision = (tiny, {"image_size": 32, "patch_size": 8}) if size == "tiny" else ({}, {})
    special = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    text = {**layers, **special, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**layers, **vision}))
    side = model.config.vision_config.image_size
    square = {"height": side, "width": side}
    for part in (model, tokenizer, CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)):
        part.save_pretrained(folder)
    return folder


def save_images(folder: Path, count: int, side: int) -> list[str]:
    """Save photograph-like JPEG files: smooth shapes and some grain."""
    noise = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        coarse = Image.fromarray(noise.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((side, side), 3)
        grain = noise.normal(0, 6, (side, side, 3))
        image = Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:06}.jpg", quality=90)
    return sorted(map(str, folder.iterdir()))


def prompt_of(number: int, per_prompt: int) -> str:
    """Make a prompt of twelve letters: fourteen tokens with start and end, as a short caption has."""
    number //= per_prompt
    return "".join(chr(ord("a") + number // 26**place % 26) for place in range(12))
