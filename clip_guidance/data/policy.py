"""The one policy for bad rows, whatever they are read from: counted, listed, and never fatal below a set share.

What an image is turned into is the policy of :mod:`clip_guidance.images` (upright, opaque, 8-bit RGB); such
conversions are counted too, since a user may not know that a tenth of the data is CMYK.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_guidance.data.records import REASONS, BadRow, Pair, Record

TRACKED_CAPTIONS = 1_000_000  # distinct captions remembered to find duplicates: at most some 100 MB


class TooManyBadRows(ValueError):
    """More rows are bad than the policy allows; the message counts them by reason and names the first."""


@dataclass(frozen=True)
class Policy:
    """Which rows are bad, and how many may be.

    Attributes:
        max_bad_share: of the rows read, in [0, 1]; more of them end the reading with :class:`TooManyBadRows`.
        min_rows: the share is not judged before as many rows, unless the epoch ends.
        max_pixels: of an image, known from its header before anything is decoded. Pillow refuses what is above
            twice its own ``PIL.Image.MAX_IMAGE_PIXELS`` in any case; the default is that number.
        min_side: in pixels. The default refuses 1 × 1 spacers.
        max_bytes: of an encoded image.
    """

    max_bad_share: float = 0.05
    min_rows: int = 1000
    max_pixels: int = 89_478_485
    min_side: int = 2
    max_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share <= 1:
            raise ValueError(f"max_bad_share: expected a share in [0, 1], got {self.max_bad_share}")
        for name in ("min_rows", "max_pixels", "min_side", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Outcome:
    """What became of a record: a pair, or the reason why not; neither where it was left out on request.

    Attributes:
        record: what was read.
        pair: None where the row is bad.
        bad: None where it is good.
        notes: what had to be done to the image or the captions, such as "cmyk" or "caption_dropped".
        size: width and height of the image as stored, where known.
    """

    record: Record
    pair: Pair | None = None
    bad: BadRow | None = None
    notes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None

    @property
    def excluded(self) -> bool:
        """Whether it was left out on request."""
        return self.pair is None and self.bad is None


@dataclass
class Ledger:
    """Counts what became of the rows of one epoch, and lists the bad ones.

    Attributes:
        source: its name, for messages.
        policy: what is allowed.
        quarantine: a JSONL file that gets a line (origin, key, reason, detail) a bad row, at once.
        rows: number read, without those left out on request.
        excluded: number of those.
        bad: number by reason.
        notes: number of good rows by what was done to them.
        captions: number in all good rows.
        duplicates: captions that an earlier row had, among the first million different ones.
        smallest: (width, height) of the good image with the fewest pixels, None without any.
        largest: that of the one with the most.
        examples: the first three bad rows of each reason.
    """

    source: str
    policy: Policy
    quarantine: Path | None = None
    rows: int = 0
    excluded: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    captions: int = 0
    duplicates: int = 0
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set, repr=False)

    @property
    def good(self) -> int:
        """Rows that gave a pair."""
        return self.rows - self.bad.total()

    @property
    def bad_share(self) -> float:
        """Share of the rows that gave none, in [0, 1]."""
        return self.bad.total() / max(1, self.rows)

    def record(self, outcome: Outcome) -> None:
        """Counts one row."""
        if outcome.excluded:
            self.excluded += 1
            return
        self.rows += 1
        if outcome.bad is not None:
            self._refuse(outcome.record, outcome.bad)
        elif outcome.pair is not None and outcome.size is not None:
            self.notes.update(outcome.notes)
            self.smallest = min(self.smallest or outcome.size, outcome.size, key=math.prod)
            self.largest = max(self.largest or outcome.size, outcome.size, key=math.prod)
            for caption in outcome.pair.captions:
                self._count_caption(hash(caption))

    def judge(self, *, final: bool = False) -> None:
        """Ends the reading where too much is bad; ``final`` also where too little was read to judge before.

        Raises:
            TooManyBadRows: more than ``policy.max_bad_share`` of the rows, or all of them.
        """
        judged = final or self.rows >= self.policy.min_rows
        if not judged or (self.good and self.bad_share <= self.policy.max_bad_share):
            return
        if not self.rows:
            excluded = f"; all {self.excluded} are excluded" if self.excluded else ""
            raise TooManyBadRows(f"{self.source}: there is no row to read{excluded}")
        if self.good:
            share = f"{self.bad_share:.1%}, more than max_bad_share={self.policy.max_bad_share:.1%}"
            found = f"{self.bad.total()} of {self.rows} rows are bad ({share})"
        else:
            found = f"none of {self.rows} rows gives a pair"
        counts = ", ".join(f"{count} {reason}" for reason, count in self.bad.most_common())
        first = next((f"; the first is {e[0]['key']}: {e[0]['detail']}" for e in self.examples.values()), "")
        listed = f"; all are listed in {self.quarantine}" if self.quarantine else ""
        raise TooManyBadRows(f"{self.source}: {found}: {counts}{first}{listed}; see `clip-guidance data check`")

    def state_dict(self) -> dict[str, Any]:
        """The counts, ready for JSON."""
        return {
            "rows": self.rows,
            "excluded": self.excluded,
            "bad": dict(self.bad),
            "notes": dict(self.notes),
            "captions": self.captions,
            "duplicates": self.duplicates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Counts on from a state; which captions and sizes were seen before it is not known any more."""
        self.rows, self.captions, self.duplicates = state["rows"], state["captions"], state["duplicates"]
        self.bad, self.notes = Counter(state["bad"]), Counter(state["notes"])
        self.excluded = state.get("excluded", 0)

    def _refuse(self, record: Record, bad: BadRow) -> None:
        assert bad.reason in REASONS
        self.bad[bad.reason] += 1
        line = {"origin": record.origin, "key": record.key, "reason": bad.reason, "detail": bad.detail}
        if len(examples := self.examples.setdefault(bad.reason, [])) < 3:
            examples.append(line)
        if self.quarantine is not None:  # opened anew each time: bad rows are few, and nothing is lost by a kill
            with self.quarantine.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _count_caption(self, code: int) -> None:
        self.captions += 1
        if code in self._seen:
            self.duplicates += 1
        elif len(self._seen) < TRACKED_CAPTIONS:
            self._seen.add(code)
