"""The history of a session: every finished pair with what asked for it, so that it can be seen and drawn again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clip_guidance.ui.pairs import Drawing, Pair, Request

MAX_ENTRIES = 200  # the oldest ones go: each page holds its own


@dataclass(frozen=True)
class Entry:
    """A finished pair.

    Attributes:
        request: What the fields hold to draw it again.
        pair: The images, by their files.
    """

    request: Request
    pair: Pair

    @property
    def caption(self) -> str:
        """What tells this entry from others."""
        strength = "own strength" if self.request.calibrate else f"strength {self.request.strength:g}"
        return f"seed {self.request.seed}, {strength}, {self.request.prompt:.40}"


def record(history: list[Entry], drawing: Drawing) -> list[Entry]:
    """Return a history with a pair that is finished, newest first."""
    return history if drawing.done is None else [Entry(drawing.done, drawing.pair), *history][:MAX_ENTRIES]


def thumbnails(history: list[Entry]) -> list[tuple[Path, str]]:
    """Return the guided image of each entry with its caption, as a gallery shows them."""
    return [(entry.pair.guided.file, entry.caption) for entry in history if entry.pair.guided.file]
