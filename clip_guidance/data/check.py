"""Reads a source once and says what is in it: what training would see, and what it would leave out."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

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
class Report:
    """What was found.

    Attributes:
        source: what was read.
        kind: what it turned out to be.
        rows: number read.
        good: number that give a pair.
        complete: whether the reading came to the end of the source.
        bad: number of bad rows by reason (``rows.REASONS``), most frequent first.
        examples: the first three bad rows of each reason: origin, key, reason, detail.
        notes: number of good rows by what is done to them; see :data:`NOTES`.
        captions: number in the good rows.
        duplicate_captions: those that an earlier row has too: they are false negatives in a contrastive batch.
        smallest: (width, height) of the image with the fewest pixels among the good ones, None without any.
        largest: (width, height) of that with the most.
        max_bad_share: the share of bad rows, in [0, 1], up to which it is accepted.
        quarantine: the file that lists all bad rows, if one was asked for.
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
        """What ``pairs`` has met so far."""
        ledger = pairs.ledger
        return cls(
            source=pairs.source.name,
            kind=pairs.source.kind,
            rows=ledger.rows,
            good=ledger.good,
            complete=pairs.row == 0 and pairs.epoch > 0,
            bad=dict(ledger.bad.most_common()),
            examples={reason: ledger.examples.get(reason, []) for reason, _ in ledger.bad.most_common()},
            notes=dict(ledger.notes.most_common()),
            captions=ledger.captions,
            duplicate_captions=ledger.duplicates,
            smallest=ledger.smallest,
            largest=ledger.largest,
            max_bad_share=pairs.policy.max_bad_share,
            quarantine=None if pairs.quarantine is None else str(pairs.quarantine),
        )

    @property
    def bad_share(self) -> float:
        """Share of the rows that give no pair, in [0, 1]."""
        return sum(self.bad.values()) / max(1, self.rows)

    @property
    def accepted(self) -> bool:
        """Whether training would go through with it."""
        return self.good > 0 and self.bad_share <= self.max_bad_share

    @property
    def verdict(self) -> str:
        """In words, whether training would go through with it."""
        if not self.rows:
            return "there is no row to read"
        allowed = f"max_bad_share={self.max_bad_share:.1%}"
        share = f"{sum(self.bad.values())} of {self.rows} rows are bad ({self.bad_share:.1%})"
        return f"{share}, {'within' if self.accepted else 'more than'} {allowed}" if self.good else f"{share}: no pair"

    def as_json(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {**asdict(self), "bad_share": self.bad_share, "accepted": self.accepted}

    def table(self) -> list[tuple[str, int, str, str]]:
        """Rows of (what, how many, share of all rows, what it means or the first case)."""
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

    def _repr_html_(self) -> str:
        from clip_guidance.report.data import data_parts
        from clip_guidance.report.html.page import fragment

        return fragment(*data_parts(self))

    def _share(self, count: int) -> str:
        return f"{count / max(1, self.rows):.1%}"

    def _sizes(self) -> str:
        if self.smallest is None or self.largest is None:
            return ""
        return ", {} × {} to {} × {} pixels".format(*self.smallest, *self.largest)


def check(pairs: Pairs, limit: int | None = None, on_row: Callable[[], object] = lambda: None) -> Report:
    """Reads a source, every image decoded, and reports; nothing is fatal.

    Args:
        pairs: just opened.
        limit: rows to read; all by default.
        on_row: called after each, for a progress bar.
    """
    with contextlib.closing(pairs.outcomes()) as outcomes:
        for _ in itertools.islice(outcomes, limit):
            on_row()
    return Report.of(pairs)
