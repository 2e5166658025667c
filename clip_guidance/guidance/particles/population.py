"""n groups of k particles, apart from what moves them: who goes on from whom, given their rewards."""

import math
import warnings

import torch
from torch import Tensor

from clip_guidance.guidance.particles.options import ParticleOptions
from clip_guidance.guidance.particles.potentials import PathWeights, resampled
from clip_guidance.guidance.particles.result import FailedRating, ParticlesResult, Resampling


class Population:
    """Keep the weights and the descent of the particles of a run.

    Args:
        options: Number of particles in a group, potential, scale and seed.
        groups: Number n of groups.
        seeds: Seeds of the generators of the initial noise, (n, k); None if they are not known.
    """

    def __init__(self, options: ParticleOptions, groups: int, seeds: Tensor | None = None) -> None:
        self.resamplings: list[Resampling] = []
        self.failed: list[FailedRating] = []
        self.evaluations = 0
        self._fractions, self._scale, self._seeds = options.fractions, options.scale or 1.0, seeds
        self._origins = torch.arange(options.k).repeat(groups, 1)
        self._generator = torch.Generator().manual_seed(options.seed)
        self._paths = None if options.is_warm_start else PathWeights.start(options.potential, groups, options.k)

    def resample(self, rewards: Tensor, step: int) -> Tensor:
        """Weigh the particles by their rewards, (n, k), after a step; return the parents in their groups, (n, k)."""
        scaled = self._scaled(rewards, step)
        if self._paths is None:
            parents = scaled.argmax(1, keepdim=True).expand_as(scaled)
            weights = torch.zeros_like(scaled).scatter(1, parents, 1.0)
        else:
            weights = self._paths.weigh(scaled)
            parents = resampled(weights, self._generator)
            self._paths.take_rows(parents)
        self._origins = self._origins.gather(1, parents)
        self.resamplings.append(Resampling(step, rewards, weights, parents, 1 / weights.square().sum(1)))
        return parents

    def rank(self, rewards: Tensor, step: int, steps: int) -> tuple[Tensor, ParticlesResult]:
        """Weigh the images by their rewards, (n, k), after the last of ``steps`` steps.

        Returns:
            Their places in their groups in the order of falling rewards, (n, k), and the record of the run.
        """
        scaled = self._scaled(rewards, step)
        order = scaled.argsort(dim=1, descending=True, stable=True)
        origins, paths = self._origins.gather(1, order), self._paths
        result = ParticlesResult(
            rewards=rewards.gather(1, order),
            weights=None if paths is None else paths.weigh_last(scaled).gather(1, order),
            log_evidence=None if paths is None else paths.log_evidence,
            origins=origins,
            seeds=None if self._seeds is None else self._seeds.gather(1, origins).tolist(),
            resamplings=self.resamplings,
            evaluations=self.evaluations,
            failed=self.failed,
        )
        self._tell(result, steps)
        return order, result

    def _tell(self, result: ParticlesResult, steps: int) -> None:
        """Warn of a run in which nothing was resampled, and of rewards that count as the worst."""
        if self._fractions and not result.resamplings:
            warnings.warn(
                f"particles were resampled after none of {steps} steps: resample_at={self._fractions} falls into the "
                "last one. Take more steps",
                stacklevel=3,
            )
        if result.failed:
            worst = result.failed[0]
            warnings.warn(
                f"{len(result.failed)} of {result.evaluations} rewards were not finite and count as the worst: first "
                f"that of image {worst.place} after step {worst.step}, {worst.reward}; `result.failed` names each",
                stacklevel=3,
            )

    def _scaled(self, rewards: Tensor, step: int) -> Tensor:
        """Return what the particles are weighed by, (n, k): rewards times the scale, -inf for the worst."""
        finite, flat = rewards.isfinite(), rewards.flatten().tolist()
        self.evaluations += len(flat)
        self.failed += [FailedRating(step, i, reward) for i, reward in enumerate(flat) if not math.isfinite(reward)]
        return torch.where(finite, self._scale * rewards, -math.inf)


def flat_rows(places: Tensor) -> Tensor:
    """Return the rows of a batch of n groups, (n·k,), from places in the groups, (n, k)."""
    return (places + torch.arange(len(places))[:, None] * places.shape[1]).flatten()
