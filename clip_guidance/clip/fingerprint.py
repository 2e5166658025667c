"""Identify a CLIP by a digest of all that its embeddings depend on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_guidance.clip.model import CLIP

_TOWER_CONFIGS = ("text_config", "vision_config")
_NOT_ARCHITECTURE = ("dtype", "_name_or_path", "transformers_version", "architectures")


def fingerprint(clip: CLIP) -> str:
    """Compute 16 hexadecimal digits from a CLIP's weights, towers, vocabulary and preprocessing."""
    config = clip.config.to_dict()
    towers = [{k: v for k, v in config[part].items() if k not in _NOT_ARCHITECTURE} for part in _TOWER_CONFIGS]
    vocabulary = clip.tokenizer.get_vocab() if clip.tokenizer is not None else {}
    described = json.dumps([towers, asdict(clip.image_processor), vocabulary], sort_keys=True, default=str)
    digest = hashlib.sha256(described.encode())
    for name, tensor in sorted(clip.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
