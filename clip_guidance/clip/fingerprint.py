"""Identify a CLIP by a digest of all that its embeddings depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from clip_guidance.clip.image_processor import ImageProcessor

_TOWER_CONFIGS = ("text_config", "vision_config")
_NOT_ARCHITECTURE = ("dtype", "_name_or_path", "transformers_version", "architectures")


def fingerprint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, image_processor: ImageProcessor
) -> str:
    """Compute 16 hexadecimal digits from a CLIP's weights, towers, vocabulary and preprocessing."""
    config = model.config.to_dict()
    towers = [{k: v for k, v in config[part].items() if k not in _NOT_ARCHITECTURE} for part in _TOWER_CONFIGS]
    vocabulary = tokenizer.get_vocab() if tokenizer is not None else {}
    preprocessing = asdict(image_processor)
    if not preprocessing["pad"]:
        del preprocessing["pad"]  # which former versions did not have: their fingerprints stay
    return digest([towers, preprocessing, vocabulary], model.state_dict())


def digest(described: Any, weights: Mapping[str, Tensor]) -> str:
    """Compute 16 hexadecimal digits from a model's weights and a description that JSON holds."""
    found = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, tensor in sorted(weights.items()):
        found.update(name.encode())
        found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
