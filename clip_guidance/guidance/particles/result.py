"""What happened to the particles of a run."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Resampling:
    """Record one resampling of n groups of k particles.

    Attributes:
        step: Index of the step after which the particles were resampled.
        rewards: Rewards of the predicted clean samples at that step, (n, k).
        weights: Share of each particle in its group, (n, k), adding up to 1 in each.
        parents: Place in the group, 0 to k - 1, of the particle that each went on from, (n, k). A particle that goes
            on keeps its place; its copies take the places of those that do not.
        effective_sizes: Number of equally weighted particles that would tell as much as these, 1/Σ weights², (n,).
    """

    step: int
    rewards: Tensor
    weights: Tensor
    parents: Tensor
    effective_sizes: Tensor


@dataclass(frozen=True)
class FailedRating:
    """Name a particle whose reward is not finite: its place in the batch after which step, and the reward."""

    step: int
    place: int
    reward: float


@dataclass(frozen=True)
class ParticlesResult:
    """Record a run of n groups of k particles; images come out in the order of its columns, best first.

    Attributes:
        rewards: Rewards of the images, (n, k), falling in each group.
        weights: Share of each image in the tilted distribution, (n, k), adding up to 1 in each group; None with the
            potential "best", which is no sample of it.
        log_evidence: Logarithm of an unbiased estimate of E[exp(scale·reward)] over the pipeline's own images, (n,);
            groups of one prompt go together in these proportions. None with the potential "best".
        origins: Place in the group, 0 to k - 1, of the initial noise that each image descends from, (n, k).
        seeds: Seed of the generator of that noise, a list for each group; None where the pipeline was not given a list
            of generators, one for each image.
        resamplings: Each resampling, in the order of the steps.
        evaluations: Number of images that the reward has rated.
        failed: Ratings that were not finite. They count as the worst.
    """

    rewards: Tensor
    weights: Tensor | None
    log_evidence: Tensor | None
    origins: Tensor
    seeds: list[list[int]] | None
    resamplings: list[Resampling]
    evaluations: int
    failed: list[FailedRating] = field(default_factory=list)
