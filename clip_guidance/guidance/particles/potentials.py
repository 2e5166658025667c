"""Weights of particles by Feynman-Kac potentials, and resampling by them (Singhal et al. 2025, arXiv:2501.06848).

With the rewards r₁, r₂ ... of a particle's predicted clean samples at the resamplings, times the scale, its weight at
the i-th is the potential

    difference   exp(rᵢ − rᵢ₋₁)
    max          exp(max(r₁ ... rᵢ))
    sum          exp(r₁ + ... + rᵢ)

and at the end, with the reward r of the image, exp(r) divided by all its potentials before. The product along each path
is exp(r), so that the weighted images follow the model's distribution times exp(r), whatever the rewards on the way
were. How far they mislead decides the variance alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

POTENTIALS = ("difference", "max", "sum")


@dataclass
class PathWeights:
    """Hold what the potentials of n groups of k paths depend on; rewards are times the scale.

    Attributes:
        potential: One of :data:`POTENTIALS`.
        paid: Sum of the logarithms of a path's potentials so far, (n, k).
        largest: Largest reward of the path, (n, k).
        total: Sum of its rewards, (n, k).
        log_evidence: Sum of the logarithms of the mean potential of each group, (n,).
    """

    potential: str
    paid: Tensor
    largest: Tensor
    total: Tensor
    log_evidence: Tensor

    @classmethod
    def start(cls, potential: str, groups: int, k: int) -> "PathWeights":
        """Begin with no potential."""
        none = torch.zeros(groups, k, dtype=torch.float64)
        return cls(potential, none, torch.full_like(none, -math.inf), none, none[:, 0])

    def weigh(self, rewards: Tensor) -> Tensor:
        """Take the rewards (n, k) of a resampling, -inf for the worst; return each path's share of its group."""
        self.largest = self.largest.maximum(rewards)
        self.total = self.total + rewards.nan_to_num(neginf=0.0)
        log_potential = {"difference": rewards - self.paid, "max": self.largest, "sum": self.total}[self.potential]
        return self._pay(log_potential, rewards)

    def weigh_last(self, rewards: Tensor) -> Tensor:
        """Take the rewards (n, k) of the images; return each image's share of its group."""
        return self._pay(rewards - self.paid, rewards)

    def _pay(self, log_potential: Tensor, rewards: Tensor) -> Tensor:
        dead = rewards == -math.inf
        none_lives = dead.all(1, keepdim=True)  # the group goes on as it is
        log_potential = torch.where(dead, -math.inf, log_potential)
        log_potential = torch.where(none_lives, 0.0, log_potential)
        self.paid = self.paid + log_potential
        self.log_evidence = self.log_evidence + log_potential.logsumexp(1) - math.log(log_potential.shape[1])
        return log_potential.softmax(1)

    def take_rows(self, parents: Tensor) -> None:
        """Follow the paths, (n, k), that have taken the place of others."""
        for name in ("paid", "largest", "total"):
            setattr(self, name, getattr(self, name).gather(1, parents))


def resampled(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Draw k parents of each group by systematic resampling: each has k·weight children on average.

    Its number is rounded up or down, with one uniform number for each group, so that equal weights change nothing.

    Args:
        weights: Shares of the particles, (n, k), adding up to 1 in each group.
        generator: Draws the uniform numbers.

    Returns:
        Places of the parents in their groups, (n, k).

    Example:
        >>> import torch
        >>> resampled(torch.tensor([[0.0, 0.5, 0.25, 0.25]]), torch.Generator())
        tensor([[1, 1, 2, 3]])
    """
    groups, k = weights.shape
    start = torch.rand(groups, 1, generator=generator, dtype=torch.float64)
    ends = weights.double().cumsum(1)
    found = torch.searchsorted(ends / ends[:, -1:], (start + torch.arange(k)) / k, right=True)
    return in_place(found.clamp(max=k - 1))


def in_place(parents: Tensor) -> Tensor:
    """Reorder the parents of each group, (n, k), so that each that has children keeps its own place for one."""
    kept = torch.arange(parents.shape[1]).repeat(len(parents), 1)
    children = (parents[:, :, None] == kept[:, None]).sum(1)
    copies = kept.flatten().repeat_interleave((children - 1).clamp(min=0).flatten())
    kept[children == 0] = copies
    return kept
