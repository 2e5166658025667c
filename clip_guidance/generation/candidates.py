"""Candidates of one image, of which the best are kept: what is asked for, and how an image was chosen.

Only the winner's own seed is needed to draw it again, so that the other candidates are on record by their number alone.
Nothing here is slow to import, because the command line takes its options from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MAX_CANDIDATES = 10_000
BY_CLIP, BY_JUDGE = "clip", "judge"


@dataclass(frozen=True)
class Candidates:
    """Say how many candidates of an image are drawn, how many are kept, and what ranks them.

    Attributes:
        n: Number of candidates, at least 1. They have the seeds from the image's own on.
        keep: Number of images that are kept, at most ``n``.
        rank_by: What ranks them: "clip" is the CLIP that steers, by all that it steers to; "judge" the CLIP that scores
            and does not steer; or a packaged CLIP, or a reward as for ``load_reward``. Where the pipeline comes without
            a CLIP, "clip" means the rewards that steer.

    Raises:
        ValueError: A number is out of range, or ``rank_by`` is empty.

    Example:
        >>> from clip_guidance.generation.candidates import Candidates
        >>> Candidates(4, keep=5)
        Traceback (most recent call last):
        ValueError: keep must be from 1 to 4, the number of candidates, got 5
    """

    n: int
    keep: int = 1
    rank_by: str = BY_CLIP

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MAX_CANDIDATES:
            raise ValueError(f"n, the number of candidates, must be from 1 to {MAX_CANDIDATES:,}, got {self.n}")
        if not 1 <= self.keep <= self.n:
            raise ValueError(f"keep must be from 1 to {self.n}, the number of candidates, got {self.keep}")
        if not self.rank_by.strip():
            raise ValueError("rank_by must name what ranks the candidates, got an empty name")


@dataclass(frozen=True)
class Choice:
    """Say how an image was chosen among candidates, as its record holds it.

    Attributes:
        n: Number of candidates that were drawn, the failed ones included.
        first_seed: Seed of the first candidate; the image's own is in its settings.
        rank: Place of the image among the candidates, from 1 on.
        reward: The weighted sum of what ``ranked_by`` made of the image.
        ranked_by: The weight, definition, model and fingerprint of each CLIP or reward that ranked the candidates.
        failed: Seed of each candidate that could not be ranked, and why.
    """

    n: int
    first_seed: int
    rank: int
    reward: float
    ranked_by: list[dict[str, Any]]
    failed: list[dict[str, Any]] = field(default_factory=list)
