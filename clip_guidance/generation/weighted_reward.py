"""A reward that steers a generated image, as the image's record holds it.

Nothing here is slow to import, because the command line reads its option so.
"""

from __future__ import annotations

from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any

from clip_guidance._files import is_valid_text

MAX_NAME = 1_000  # characters of a name, which is a path or a hub id
MAX_WEIGHT = 10_000.0


@dataclass(frozen=True)
class WeightedReward:
    """Name a reward and the strength with which it steers.

    Attributes:
        name: As for ``load_reward``: "pickscore", a folder, a hub id ...
        weight: Strength of its tilt, the ``scale`` of ``Guidance``; a negative one steers away.

    Raises:
        ValueError: One of them is no such value.

    Example:
        >>> from clip_guidance.generation.weighted_reward import WeightedReward
        >>> WeightedReward.parse("pickscore=2.5"), WeightedReward.parse("hpsv2.1")
        (WeightedReward(name='pickscore', weight=2.5), WeightedReward(name='hpsv2.1', weight=1.0))
    """

    name: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        is_name = isinstance(self.name, str) and 0 < len(self.name) <= MAX_NAME and is_valid_text(self.name)
        if not is_name or "\0" in self.name:
            raise ValueError(f"name must be that of a reward, a folder or a hub id, got {shortened(self.name)}")
        is_number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not is_number or not -MAX_WEIGHT <= self.weight <= MAX_WEIGHT:  # NaN is in no range
            range_ = f"from {-MAX_WEIGHT:,.0f} to {MAX_WEIGHT:,.0f}"
            raise ValueError(f"weight must be a number {range_}, got {shortened(self.weight)}")

    @classmethod
    def parse(cls, text: str) -> WeightedReward:
        """Read ``NAME`` or ``NAME=WEIGHT``; what follows the last = belongs to the name where it is no number.

        Raises:
            ValueError: There is no name, or the weight is out of range.
        """
        name, _, weight = text.rpartition("=")
        try:
            number = float(weight)
        except ValueError:
            return cls(text)
        return cls(name, number) if name else cls(text)

    @classmethod
    def from_record(cls, value: Any) -> WeightedReward:
        """Make it from what a record holds.

        Raises:
            ValueError: It is something else.
        """
        if not isinstance(value, dict) or set(value) != {"name", "weight"}:
            raise ValueError(f"expected name and weight, got {shortened(value)}")
        return cls(**value)
