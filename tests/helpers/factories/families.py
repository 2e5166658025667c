"""Tiny dual encoders of transformers, one per family: the library's own classes, tokenizers and preprocessing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from helpers.factories.clips import TEXTS, make_tokenizer

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SIZES, "image_size": 32, "patch_size": 8}
WORDS = sorted({word for text in TEXTS for word in text.replace(",", " ,").split()})


@dataclass(frozen=True)
class Family:
    """How a family is built small.

    Attributes:
        model: Makes the model, given the tokenizer.
        tokenizer: Makes the tokenizer.
        processor: The library's class of its preprocessing, and its settings.
    """

    model: Callable[[Any], Any]
    tokenizer: Callable[[], Any]
    processor: tuple[type, dict[str, Any]]

    def build(self, seed: int = 0) -> tuple[Any, Any, Any]:
        """Return a model with random weights, its tokenizer and its preprocessing."""
        torch.manual_seed(seed)
        tokenizer, (processor, settings) = self.tokenizer(), self.processor
        return self.model(tokenizer).eval(), tokenizer, processor(**settings)

    def save(self, folder: Path, seed: int = 0) -> Path:
        """Save such a model with all its parts."""
        for part in self.build(seed):
            part.save_pretrained(folder)
        return folder


def bert_tokenizer() -> Any:
    vocab = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    return tf.BertTokenizer(vocab=vocab, model_max_length=32)


def roberta_tokenizer() -> Any:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *("▁" + word for word in WORDS), *"abcdefghijklmnopqrstuvwxyz,"]
    return tf.XLMRobertaTokenizer(vocab=[(piece, -float(i > 3)) for i, piece in enumerate(pieces)], model_max_length=32)


def siglip_tokenizer() -> Any:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    vocab = {token: i for i, token in enumerate([*special, "▁", *"abcdefghijklmnopqrstuvwxyz,", "ap", "pp"])}
    return tf.Siglip2Tokenizer(vocab=vocab, merges=[("a", "p"), ("p", "p")], padding_side="right", model_max_length=64)


def _text(tokenizer: Any, **others: Any) -> dict[str, Any]:
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 32, **ids, **others}


def _clip_like(name: str, **others: Any) -> Callable[[Any], Any]:
    """Make models of CLIP's pattern: two configs and a size of the embeddings."""

    def make(tokenizer: Any) -> Any:
        config, model = getattr(tf, f"{name}Config"), getattr(tf, f"{name}Model")
        return model(config(text_config=_text(tokenizer), vision_config=VISION, projection_dim=24, **others))

    return make


def _siglip(tokenizer: Any) -> Any:
    text = _text(tokenizer, max_position_embeddings=64, projection_size=32)
    model = tf.SiglipModel(tf.SiglipConfig(text_config=text, vision_config=VISION))
    model.logit_scale.data.fill_(2.0)
    model.logit_bias.data.fill_(-1.5)
    return model


def _siglip2(tokenizer: Any) -> Any:
    text = _text(tokenizer, max_position_embeddings=64, projection_size=32)
    vision = {**SIZES, "patch_size": 8, "num_patches": 16}
    model = tf.Siglip2Model(tf.Siglip2Config(text_config=text, vision_config=vision))
    model.logit_scale.data.fill_(2.0)
    model.logit_bias.data.fill_(-1.5)
    return model


def _tipsv2(tokenizer: Any) -> Any:
    text = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    model = tf.Tipsv2Model(tf.Tipsv2Config(text_config=text, vision_config=VISION))
    model.temperature.data.fill_(0.1)
    return model


def tipsv2_tokenizer() -> Any:
    vocab = {token: i for i, token in enumerate(["<pad>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz,"])}
    return tf.Tipsv2Tokenizer(vocab=vocab, model_max_length=32)


def _altclip(tokenizer: Any) -> Any:
    text = _text(tokenizer, max_position_embeddings=34, project_dim=28)  # RoBERTa keeps two places for padding
    return tf.AltCLIPModel(tf.AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24))


def _align(tokenizer: Any) -> Any:
    vision = {"image_size": 32, "hidden_dim": 96, "depthwise_padding": [], "width_coefficient": 0.25}
    blocks = {"kernel_sizes": [3, 3], "in_channels": [32, 16], "out_channels": [16, 96], "strides": [1, 2]}
    blocks |= {"num_block_repeats": [1, 1], "expand_ratios": [1, 6], "depth_coefficient": 0.5}
    config = tf.AlignConfig(text_config=_text(tokenizer), vision_config={**vision, **blocks}, projection_dim=24)
    return tf.AlignModel(config)


def _groupvit(tokenizer: Any) -> Any:
    stages = {"depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [4, 2]}
    vision = {**VISION, "hidden_size": 32, **stages}
    config = tf.GroupViTConfig(text_config=_text(tokenizer), vision_config=vision, projection_dim=24)
    return tf.GroupViTModel(config)


def _vision_text(tokenizer: Any) -> Any:
    vision, text = tf.ViTConfig(**VISION), tf.BertConfig(**_text(tokenizer))
    config = tf.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)
    return tf.VisionTextDualEncoderModel(config)


CLIP_PROCESSOR = (tf.CLIPImageProcessorPil, {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}})
_SQUARE = {"size": {"height": 32, "width": 32}}
FAMILIES = {
    "clip": Family(_clip_like("CLIP"), lambda: make_tokenizer(32), CLIP_PROCESSOR),
    "metaclip_2": Family(_clip_like("MetaClip2"), roberta_tokenizer, CLIP_PROCESSOR),
    "siglip": Family(_siglip, siglip_tokenizer, (tf.SiglipImageProcessorPil, _SQUARE)),
    "chinese_clip": Family(
        _clip_like("ChineseCLIP"), bert_tokenizer, (tf.ChineseCLIPImageProcessorPil, CLIP_PROCESSOR[1])
    ),
    "altclip": Family(_altclip, roberta_tokenizer, CLIP_PROCESSOR),
    "align": Family(_align, bert_tokenizer, (tf.EfficientNetImageProcessorPil, _SQUARE)),
    "aimv2": Family(_clip_like("Aimv2"), lambda: make_tokenizer(32), CLIP_PROCESSOR),
    "groupvit": Family(_groupvit, lambda: make_tokenizer(32), CLIP_PROCESSOR),
    "owlvit": Family(_clip_like("OwlViT"), lambda: make_tokenizer(32), (tf.OwlViTImageProcessorPil, _SQUARE)),
    "siglip2": Family(
        _siglip2, siglip_tokenizer, (tf.Siglip2ImageProcessorPil, {"patch_size": 8, "max_num_patches": 20})
    ),
    "tipsv2": Family(_tipsv2, tipsv2_tokenizer, (tf.ViTImageProcessorPil, {**_SQUARE, "do_normalize": False})),
    "vision-text-dual-encoder": Family(_vision_text, bert_tokenizer, (tf.ViTImageProcessorPil, _SQUARE)),
}
