"""Parameter groups and a learning rate: ``get_scheduler("cosine")`` without a state to save.

The rate is a function of the step, so that a run resumes bit for bit with nothing but its number of steps. It differs
from diffusers' ``get_scheduler("cosine")`` in the warm-up, whose n steps begin with 1/n of the peak and not with zero,
and in the shares of the rate that groups have.

Weight decay is for matrices and kernels: norms, biases and the temperature are left alone. With layer-wise decay
(Howard & Ruder 2018, arXiv:1801.06146, section 3.2) a block learns more slowly the nearer it is to the input, where
features are more general:

    rate of the block n before the last = layer_decay ** n · rate

The embeddings or the stem count as one more block before the first; what comes after the last block, the projections
and the temperature have the full rate.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from torch import nn

from clip_guidance.towers import ImageTower, TextTower


def parameter_groups(module: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Group the parameters that need a gradient by weight decay and share of the learning rate.

    The order of the parameters does not depend on ``layer_decay``: a checkpoint's moments fit with any value.

    Args:
        module: Contains CLIP's towers, where ``layer_decay`` is below 1.
        weight_decay: Of parameters with two dimensions or more; the others have none.
        layer_decay: In (0, 1]; 1 gives all parameters the same rate.

    Returns:
        Groups for an optimizer. ``lr_scale`` is the group's share of the learning rate, in (0, 1].

    Raises:
        ValueError: ``layer_decay`` is out of range, or there is no tower.

    Example:
        >>> groups = parameter_groups(nn.Linear(3, 2), weight_decay=0.1)
        >>> [(tuple(group["params"][0].shape), group["weight_decay"], group["lr_scale"]) for group in groups]
        [((2, 3), 0.1, 1.0), ((2,), 0.0, 1.0)]
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
    """Map the parameters up to the last block of each tower to their share of the rate."""
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
    """Return the steps of the warm-up.

    Args:
        warmup: A number of steps, or below 1 the share of all steps.
        steps: All steps.

    Raises:
        ValueError: ``warmup`` is negative, not finite, or above 1 and no whole number.

    Example:
        >>> warmup_steps(100, 2000), warmup_steps(0.1, 2000)
        (100, 200)
    """
    if not 0 <= warmup < math.inf or (warmup > 1 and warmup != int(warmup)):
        raise ValueError(f"warmup: expected a share of the steps in [0, 1) or a whole number of steps, got {warmup}")
    return int(warmup) if warmup >= 1 else round(warmup * steps)


def learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """Return the rate of a step: a linear warm-up, then half a cosine down to zero.

    The cosine is that of SGDR (Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5).

    Args:
        step: Number of steps done before, in [0, total).
        total: All steps.
        peak: The rate at the end of the warm-up.
        warmup: As for :func:`warmup_steps`.

    Example:
        >>> [round(learning_rate(step, total=8, peak=1.0, warmup=2), 3) for step in (0, 1, 2, 5, 7)]
        [0.5, 1.0, 1.0, 0.5, 0.067]
    """
    rising = warmup_steps(warmup, total)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total - rising))))
