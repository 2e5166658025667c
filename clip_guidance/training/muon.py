"""Optimize with Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024).

With the gradient G of a matrix, or of a kernel whose rows are its output channels,

    M ← μ M + (1 − μ) G,    W ← W − η (0.2 √max(rows, columns) · orthogonal(μ M + (1 − μ) G) + λ W),

where orthogonal(U S Vᵀ) is nearly U Vᵀ, by five steps of a Newton-Schulz iteration of fifth order. The factor gives its
entries the root mean square of an update of AdamW (Liu et al. 2025, arXiv:2502.16982, section 2.2), so that both take
the same learning rate. Biases, norms and kernels with very few rows or columns are left to AdamW.

``torch.optim.Muon`` takes matrices alone: it refuses the kernels of convolutions, which are nearly all of an
autoencoder, and leaves the rest to a second optimizer, whose state a checkpoint would have to hold too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steepest at zero
FEWEST = 4  # rows and columns of a matrix worth making orthogonal


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of a matrix near one and keep its singular vectors."""
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for matrices and kernels, AdamW for all else, at one learning rate.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate of both.
        momentum: Of Muon, μ above.
        betas: Of AdamW.
        weight_decay: Of both, λ above.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-4,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                matrix = parameter.ndim >= 2 and min(len(parameter), parameter[0].numel()) >= FEWEST
                update = self._muon if matrix else self._adam
                parameter.add_(update(parameter, parameter.grad, group), alpha=-group["lr"])
        return value

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"]
        average.lerp_(gradient, 1 - group["momentum"])
        update = orthogonal(gradient.lerp(average, group["momentum"]).flatten(1))
        return (0.2 * max(update.shape) ** 0.5 * update).view(parameter.shape)

    def _adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state |= {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            state["step"] = torch.zeros(())
        first, second, step = state["exp_avg"], state["exp_avg_sq"], state["step"]
        step += 1
        slow, slower = group["betas"]
        first.lerp_(gradient, 1 - slow)
        second.lerp_(gradient.square(), 1 - slower)
        return first / (1 - slow**step) / ((second / (1 - slower**step)).sqrt() + 1e-8)
