"""Identify a CLIP by a digest of all that its embeddings depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from clip_guidance.clip.image_processor import ImageProcessor

_TOWER_CONFIGS = ("text_config", "vision_config")
_NEWER_PREPROCESSING = ("pad", "fill", "round_crop")  # which former versions did not have: their fingerprints stay
_NOT_ARCHITECTURE = ("dtype", "_name_or_path", "transformers_version", "architectures")


def fingerprint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, image_processor: ImageProcessor
) -> str:
    """Compute 16 hexadecimal digits from a CLIP's weights, towers, vocabulary and preprocessing."""
    config = model.config.to_dict()
    towers = [{k: v for k, v in config[part].items() if k not in _NOT_ARCHITECTURE} for part in _TOWER_CONFIGS]
    vocabulary = tokenizer.get_vocab() if tokenizer is not None else {}
    preprocessing = asdict(image_processor)
    for name in _NEWER_PREPROCESSING:
        if not preprocessing[name]:
            del preprocessing[name]
    described = json.dumps([towers, preprocessing, vocabulary], sort_keys=True, default=str)
    digest = hashlib.sha256(described.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
