"""Affine heads on embeddings: w · e + b, read from safetensors.

The improved aesthetic predictor (https://github.com/christophschuhmann/improved-aesthetic-predictor) and ImageReward
stack five linear layers with nothing but dropout between them. Without dropout that is one affine map, which is
multiplied out here in float64:

    W₅(W₄(W₃(W₂(W₁e + b₁) + b₂) + b₃) + b₄) + b₅ = w · e + b.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from clip_guidance.rewards.base import RewardError


def folded(weights: Mapping[str, Tensor], width: int | None, name: str) -> tuple[Tensor, Tensor]:
    """Multiply out linear layers into one vector and one offset.

    Args:
        weights: ``weight`` and ``bias`` of each layer. The number in a name, as ``nn.Sequential`` gives it
            ("layers.2.weight"), says the order; a single layer needs none ("weight").
        width: Width of the embeddings that the head reads; None where any will do.
        name: Name of the head, for the messages.

    Returns:
        Vector (d,) and scalar, float32.

    Raises:
        RewardError: A tensor is missing or left over, or the layers do not fit each other or the width.
    """
    layers: dict[int, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        found = re.fullmatch(r"(?:.*?(\d+)\.)?(weight|bias)", key)
        if found is None:
            raise RewardError(f"{name}: expected weights and biases of linear layers, got {key}")
        layers.setdefault(int(found[1] or 0), {})[found[2]] = tensor.double()
    shapes = [tuple(tuple(layer[part].shape) for part in sorted(layer)) for _, layer in sorted(layers.items())]
    ordered = [layer for _, layer in sorted(layers.items())]
    if not ordered or any(set(layer) != {"weight", "bias"} for layer in ordered):
        raise RewardError(f"{name}: expected a weight and a bias per linear layer, got {sorted(weights)[:6]}")
    inputs = width
    for layer in ordered:
        weight, bias = layer["weight"], layer["bias"]
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or inputs not in (None, weight.shape[1]):
            raise RewardError(f"{name}: layers that do not fit each other or embeddings of width {width}: {shapes}")
        inputs = weight.shape[0]
    if inputs != 1:
        raise RewardError(f"{name}: expected one output, got {inputs}")
    vector, offset = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for layer in reversed(ordered):
        offset = offset + vector @ layer["bias"]
        vector = vector @ layer["weight"]
    return vector[0].float(), offset[0].float()
