"""The parameters of a model in groups, each with its weight decay and its share of the learning rate; and that rate.

Weight decay is for matrices and kernels: norms, biases and the temperature are left alone. With layer-wise decay
(Howard & Ruder 2018, arXiv:1801.06146, section 3.2) a block learns more slowly the nearer it is to the input, for what
it knows is the more general there:

    rate of the block n before the last = layer_decay ** n · rate

The embeddings or the stem count as one more block before the first; what stands behind the last block, the projections
and the temperature have the full rate.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from torch import nn

from clip_guidance.towers import ImageTower, TextTower


def parameter_groups(module: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """The parameters that need a gradient, each of them in one group.

    The order of the parameters does not depend on ``layer_decay``: a checkpoint's moments fit whatever it is.

    Args:
        module: has CLIP's towers somewhere in it, where ``layer_decay`` is below 1.
        weight_decay: of parameters with two dimensions or more; the others have none.
        layer_decay: in (0, 1]; 1 for the same rate everywhere.

    Returns:
        Groups for an optimizer. ``lr_scale`` is the group's share of the learning rate, in (0, 1].

    Raises:
        ValueError: ``layer_decay`` is out of range, or there is no tower.
    """
    scales = _rate_scales(module, layer_decay)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    for decay, matrices in ((weight_decay, True), (0.0, False)):
        members = [parameter for parameter in trained if (parameter.ndim >= 2) == matrices]
        for scale, run in itertools.groupby(members, key=lambda parameter: scales.get(parameter, 1.0)):
            groups.append({"params": list(run), "weight_decay": decay, "lr_scale": scale})
    return groups


def _rate_scales(module: nn.Module, layer_decay: float) -> dict[nn.Parameter, float]:
    """The share of the learning rate of every parameter up to the last block of its tower."""
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay: expected more than 0 and at most 1, got {layer_decay}")
    if layer_decay == 1:
        return {}
    towers = [tower for tower in module.modules() if isinstance(tower, ImageTower | TextTower)]
    if not towers:
        raise ValueError(
            f"layer_decay {layer_decay}: expected a module with an image or a text tower in it, got "
            f"{type(module).__name__}, which has no blocks to tell apart"
        )
    return {
        parameter: layer_decay**distance
        for tower in towers
        for distance, parts in enumerate(reversed(tower.layer_groups()))
        for part in parts
        for parameter in part.parameters()
    }


def warmup_steps(warmup: float, steps: int) -> int:
    """A number of steps from 1 on, below 1 a share of ``steps``, rounded.

    Raises:
        ValueError: it is negative, not finite, or no whole number where it should be one.
    """
    if not 0 <= warmup < math.inf or (warmup > 1 and warmup != int(warmup)):
        raise ValueError(f"warmup: expected a share of the steps in [0, 1) or a whole number of steps, got {warmup}")
    return int(warmup) if warmup >= 1 else round(warmup * steps)


def learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """Linear warm-up to ``peak``, then half a cosine down to zero at ``total`` (SGDR, arXiv:1608.03983, eq. 5)."""
    rising = warmup_steps(warmup, total)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total - rising))))
