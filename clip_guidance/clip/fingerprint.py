"""Identify a CLIP by a digest of all that its embeddings depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_NOT_ARCHITECTURE = ("dtype", "_name_or_path", "transformers_version", "architectures")
# Settings of towers that came later: at the values of all models before, a fingerprint is what it was then.
_LATER = {"clip_guidance_vit": {"stem_act": "relu"}, "clip_guidance_resnet": {"hidden_act": "relu"}}


def digest(described: Any, weights: Mapping[str, Tensor]) -> str:
    """Compute 16 hexadecimal digits from a model's weights and a description that JSON holds."""
    found = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, tensor in sorted(weights.items()):
        found.update(name.encode())
        found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config of transformers, as a dict, says of the architecture, in it and in the configs inside."""
    later = _LATER.get(config.get("model_type", ""), {})
    parts = {
        key: value
        for key, value in config.items()
        if key not in _NOT_ARCHITECTURE and not (key in later and value == later[key])
    }
    return {key: architecture(value) if isinstance(value, Mapping) else value for key, value in parts.items()}
