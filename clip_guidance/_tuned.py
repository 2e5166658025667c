"""What suits a pipeline and a CLIP together: the packaged table, and the files that ``tune`` writes.

Nothing here is slow to import, because the command line takes its defaults from here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from clip_guidance._files import read_json, write_atomically

TABLE = Path(__file__).parent / "models" / "tuned.json"
NAMED_MODES = ("x0", "exact", "noisy", "blend")  # a table holds no code
TOWER_MODES = ("noisy", "blend")  # those that read the noisy sample by a tower of the CLIP's


@dataclass(frozen=True)
class GuidanceDefaults:
    """What stands for the options of a guidance that are None.

    Attributes:
        scale: Strength; None for the calibrated one of :mod:`clip_guidance.guidance.engine.calibration`.
        mode: Name of the mode.
        damping: Curvature of the reward.
        start: Fraction of the run's steps before which guidance rests.
        stop: Fraction of the run's steps from which on guidance rests.

    Raises:
        ValueError: A value has another type, or is out of range.
    """

    scale: float | None = None
    mode: str = "x0"
    damping: float = 0.0
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        for name in ("scale", "damping", "start", "stop"):
            value = getattr(self, name)
            if value is None and name == "scale":
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {shortened(value)}")
        if self.damping < 0:
            raise ValueError(f"damping must be at least 0, got {self.damping}")
        if self.mode not in NAMED_MODES:
            raise ValueError(f"mode must be one of {', '.join(NAMED_MODES)}, got {shortened(self.mode)}")
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(f"expected 0 <= start < stop <= 1, got start={self.start}, stop={self.stop}")


@dataclass(frozen=True)
class KnownModel:
    """Name a model, and tell it from others.

    Attributes:
        name: Where it was loaded from, for people; "" where it was made in memory.
        fingerprint: What it is known by: of a CLIP its ``fingerprint()``, of a pipeline
            :func:`~clip_guidance.guidance.pairs.pipeline_fingerprint`.

    Raises:
        ValueError: One of them is no text.
    """

    name: str
    fingerprint: str

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, str):
                raise ValueError(f"{name} must be a text, got {shortened(value)}")


@dataclass(frozen=True)
class TunedPair:
    """Hold what suits a pipeline and a CLIP together.

    Attributes:
        pipeline: The pipeline.
        clip: The CLIP.
        defaults: What was found.
        measured: With which settings it was measured, and what came out, as JSON holds it.

    Example:
        >>> from clip_guidance._tuned import packaged_pairs
        >>> pair = packaged_pairs()[0]
        >>> pair.pipeline.name, pair.clip.name, pair.options["scale"], pair.options["mode"]
        ('emoji', 'emoji', 10.0, 'blend')
    """

    pipeline: KnownModel
    clip: KnownModel
    defaults: GuidanceDefaults
    measured: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of ``CLIPGuidance``."""
        return asdict(self.defaults)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, which :func:`load_tuned` reads.

        Raises:
            OSError: The file cannot be written.
        """
        with write_atomically(path) as partial:
            partial.write_text(json.dumps(self.record(), indent=2) + "\n", encoding="utf-8")

    def record(self) -> dict[str, Any]:
        """Return all of it, as JSON holds it."""
        models = {"pipeline": asdict(self.pipeline), "clip": asdict(self.clip)}
        return {**models, "options": self.options, "measured": self.measured}

    @classmethod
    def from_record(cls, record: Any) -> TunedPair:
        """Read what :meth:`record` returned, which anybody may have written since.

        Raises:
            ValueError: Something is missing, unknown, of another type, or out of range; the message names it.
        """
        parts = _entries("a tuned pair", record, ("pipeline", "clip", "options"), ("measured",))
        pipeline, clip = (KnownModel(**_entries(n, parts[n], ("name", "fingerprint"))) for n in ("pipeline", "clip"))
        known = tuple(each.name for each in fields(GuidanceDefaults))
        options = _entries("options", parts["options"], ("scale",), known)
        return cls(pipeline, clip, GuidanceDefaults(**options), dict(parts.get("measured") or {}))


def load_tuned(path: str | os.PathLike[str]) -> TunedPair:
    """Read what ``clip-guidance tune`` found for a pipeline and a CLIP.

    Its ``options`` are keywords of :class:`~clip_guidance.guidance.CLIPGuidance`.

    Args:
        path: The JSON file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds something else; the message names the file and what was expected.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import clip_guidance as cg
        >>> from clip_guidance._tuned import packaged_pairs
        >>> file = Path(tempfile.mkdtemp(), "tuned.json")
        >>> packaged_pairs()[0].save(file)
        >>> tuned = cg.load_tuned(file)
        >>> cg.CLIPGuidance("emoji", "a red apple", **tuned.options).scale
        10.0
    """
    try:
        return TunedPair.from_record(read_json(path))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


@cache
def packaged_pairs() -> tuple[TunedPair, ...]:
    """Read the packaged table; the first of a pipeline and a CLIP is the best, the others are for other modes."""
    return tuple(map(TunedPair.from_record, read_json(TABLE)["pairs"]))


def named_defaults(
    pipeline: str, clip: str, mode: str | None = None, has_tower: bool = True
) -> GuidanceDefaults | None:
    """Find what :func:`choose_defaults` finds of a packaged pair by its names; None where it is not in the table.

    Args:
        pipeline: Name of the pipeline.
        clip: Name of the CLIP.
        mode: The mode that is asked for.
        has_tower: Whether what is steered to can be told to a tower of the CLIP's.
    """
    names = (pipeline, clip)
    measured = [each.defaults for each in packaged_pairs() if (each.pipeline.name, each.clip.name) == names]
    return choose_defaults(measured, mode, lambda name: has_tower or name not in TOWER_MODES)


def choose_defaults(
    measured: Iterable[GuidanceDefaults], mode: str | None, serves: Callable[[str], bool]
) -> GuidanceDefaults | None:
    """Choose among what was measured of one pipeline and one CLIP.

    Args:
        measured: The best first.
        mode: The mode that is asked for; None for none.
        serves: Tells of a mode's name whether it can steer here.

    Returns:
        What was measured with the mode that is asked for, else the first with a mode that can steer; None for nothing.
    """
    by_mode = {each.mode: each for each in measured}
    return by_mode.get(mode or "") or next((each for name, each in by_mode.items() if serves(name)), None)


def _entries(what: str, found: Any, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the entries of an object of JSON, which has all that are required and none that is unknown."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{what} must be a JSON object, got {shortened(found)}")
    if missing := [name for name in required if name not in found]:
        raise ValueError(f"{what} has no {missing[0]!r}")
    if unknown := sorted(set(found) - {*required, *optional}):
        raise ValueError(f"{what} has {shortened(unknown[0])}, which is unknown to this version")
    return dict(found)
