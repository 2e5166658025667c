"""Tiny CLIPs for the tests: every tower pair of ours; and CLIP's real vocabulary."""

from __future__ import annotations

import functools
import gzip
import itertools
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from clip_guidance.clip import CLIP, CLIPConfig
from clip_guidance.clip.tokenizer import train_tokenizer
from clip_guidance.towers import CBOWTextConfig, ResNetConfig, TransformerTextConfig, ViTConfig

PAIRS = list(itertools.product(("vit", "resnet"), ("transformer", "cbow")))
TEXTS = ["a red apple", "a green apple on a table", "noto butterfly, insect, pretty", "a photo of a cat"]


@functools.lru_cache
def make_tokenizer(context_length: int = 16) -> CLIPTokenizer:
    return train_tokenizer(TEXTS * 4, vocab_size=600, context_length=context_length)


def text_config(kind: str, tokenizer: CLIPTokenizer, **options):
    shared = dict(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    options = shared | options
    if kind == "cbow":
        return CBOWTextConfig(**options)
    return TransformerTextConfig(num_hidden_layers=3, num_attention_heads=2, **options)


def image_config(kind: str):
    if kind == "resnet":
        return ResNetConfig(image_size=32, hidden_sizes=[16, 32], depths=[1, 2])
    return ViTConfig(
        image_size=32, patch_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )


def make_clip(image: str = "vit", text: str = "transformer", seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    config = CLIPConfig(text_config=text_config(text, tokenizer), vision_config=image_config(image), projection_dim=24)
    return CLIP(config, tokenizer).eval()


def with_adapter(clip: CLIP, folder: Path) -> CLIP:
    """A CLIP with a saved adapter in its weights, merged as users merge one; the projections are not peft's."""
    import peft

    clip = peft.PeftModel.from_pretrained(clip, str(folder)).merge_and_unload()
    clip.load_state_dict(load_file(folder / "heads.safetensors"), strict=False)
    return clip


def real_tokenizer(shared_data: Path) -> CLIPTokenizer:
    """OpenAI's vocabulary, built as its ``simple_tokenizer.py`` does."""
    packed = (shared_data / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    assert set(letters) == set(ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    vocab = {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
