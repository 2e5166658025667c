"""Read a source once and report what training would see of it and what it would leave out."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from clip_guidance._display import DisplayMixin
from clip_guidance.data.pairs import Pairs
from clip_guidance.data.records import REASONS

NOTES = {
    "cmyk": "converted from CMYK",
    "palette": "converted from a palette",
    "grey": "converted from grey",
    "16_bit": "scaled from 16 bits to 8",
    "alpha": "transparency laid on white",
    "rotated": "turned upright as EXIF says",
    "first_frame": "animated; the first frame is taken",
    "broken_metadata": "broken metadata, ignored",
    "caption_dropped": "some captions empty, no text, or twice",
}


@dataclass(frozen=True)
class Report(DisplayMixin):
    """What :func:`check` found in a source; shows itself in a notebook.

    Attributes:
        source: What was read.
        kind: What the source turned out to be, such as "image folder".
        rows: Number of rows that were read.
        good: Number of rows that give a pair.
        complete: Whether the reading came to the end of the source.
        bad: Number of bad rows by reason (``records.REASONS``), most frequent first.
        examples: The first three bad rows of each reason: origin, key, reason, detail.
        notes: Number of good rows by what is done to them; see :data:`NOTES`.
        captions: Number of captions in the good rows.
        duplicate_captions: Number of captions that an earlier row has too; in a contrastive batch they are false
            negatives.
        smallest: (Width, height) in pixels of the good image with the fewest pixels; None where there is none.
        largest: (Width, height) in pixels of the good image with the most pixels; None where there is none.
        max_bad_share: Share of bad rows, in [0, 1], up to which the source is accepted.
        quarantine: File that lists all bad rows; None where none was asked for.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from clip_guidance.data import check, open_pairs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (8, 8), "red").save(Path(folder, "1.png"))
        ...     _ = Path(folder, "1.txt").write_text("a red apple")
        ...     report = check(open_pairs(folder))
        >>> report.verdict
        '0 of 1 rows are bad (0.0%), within max_bad_share=5.0%'
    """

    source: str
    kind: str
    rows: int
    good: int
    complete: bool
    bad: dict[str, int]
    examples: dict[str, list[dict[str, str]]]
    notes: dict[str, int]
    captions: int
    duplicate_captions: int
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    max_bad_share: float
    quarantine: str | None

    @classmethod
    def of(cls, pairs: Pairs) -> Report:
        """Report what ``pairs`` has read so far."""
        counters = pairs.counters
        return cls(
            source=pairs.source.name,
            kind=pairs.source.kind,
            rows=counters.rows,
            good=counters.good,
            complete=pairs.row == 0 and pairs.epoch > 0,
            bad=dict(counters.bad.most_common()),
            examples={reason: counters.examples.get(reason, []) for reason, _ in counters.bad.most_common()},
            notes=dict(counters.notes.most_common()),
            captions=counters.captions,
            duplicate_captions=counters.duplicates,
            smallest=counters.smallest,
            largest=counters.largest,
            max_bad_share=pairs.policy.max_bad_share,
            quarantine=None if pairs.quarantine is None else str(pairs.quarantine),
        )

    @property
    def bad_share(self) -> float:
        """Share of the rows that give no pair, in [0, 1]."""
        return sum(self.bad.values()) / max(1, self.rows)

    @property
    def accepted(self) -> bool:
        """Whether training would accept the source."""
        return self.good > 0 and self.bad_share <= self.max_bad_share and not self.uniform

    @property
    def uniform(self) -> bool:
        """Whether several images were read, to the end of the source, and all their captions are one and the same."""
        return self.complete and self.good > 1 and self.captions - self.duplicate_captions == 1

    @property
    def verdict(self) -> str:
        """Whether training would accept the source, in words."""
        if not self.rows:
            return "there is no row to read"
        allowed = f"max_bad_share={self.max_bad_share:.1%}"
        share = f"{sum(self.bad.values())} of {self.rows} rows are bad ({self.bad_share:.1%})"
        if not self.good:
            return f"{share}: no pair"
        if self.bad_share > self.max_bad_share:
            return f"{share}, more than {allowed}"
        if self.uniform:
            return f"{share}, and all {self.captions} captions are the same: a CLIP has nothing to learn"
        return f"{share}, within {allowed}"

    def as_json(self) -> dict[str, Any]:
        """Return all attributes as a dict that JSON can hold."""
        return {**asdict(self), "bad_share": self.bad_share, "accepted": self.accepted}

    def table(self) -> list[tuple[str, int, str, str]]:
        """List (what, how many, share of all rows, what it means or the first case)."""
        lines = [("rows", self.rows, "", f"{self.source} ({self.kind}{'' if self.complete else ', only these read'})")]
        lines += [("good", self.good, self._share(self.good), f"{self.captions} captions{self._sizes()}")]
        for reason, count in self.bad.items():
            first = next((f"{row['key']}: {row['detail']}" for row in self.examples[reason]), REASONS[reason])
            lines.append((f"bad: {reason}", count, self._share(count), first))
        lines += [(name, count, self._share(count), NOTES[name]) for name, count in self.notes.items()]
        if self.duplicate_captions:
            share = f"{self.duplicate_captions / self.captions:.1%} of captions"
            lines.append(("duplicate captions", self.duplicate_captions, share, "an earlier image has the same"))
        return lines

    def _share(self, count: int) -> str:
        return f"{count / max(1, self.rows):.1%}"

    def _sizes(self) -> str:
        if self.smallest is None or self.largest is None:
            return ""
        return ", {} × {} to {} × {} pixels".format(*self.smallest, *self.largest)


def check(pairs: Pairs, limit: int | None = None, on_row: Callable[[], object] = lambda: None) -> Report:
    """Read a source, decode every image, and report; no number of bad rows ends it.

    Args:
        pairs: The source, just opened with :func:`~clip_guidance.data.open_pairs`.
        limit: Number of rows to read; by default all.
        on_row: Called after each row, such as by a progress bar.

    Returns:
        The report.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from clip_guidance.data import check, open_pairs
        >>> folder = Path(tempfile.mkdtemp(), "apple")
        >>> folder.mkdir()
        >>> Image.new("RGB", (8, 8), "red").save(folder / "1.png")
        >>> _ = (folder / "2.png").write_text("not an image")
        >>> report = check(open_pairs(folder.parent))
        >>> report.good, report.bad, report.accepted
        (1, {'unknown_format': 1}, False)
    """
    with contextlib.closing(pairs.results()) as results:
        for _ in itertools.islice(results, limit):
            on_row()
    return Report.of(pairs)
