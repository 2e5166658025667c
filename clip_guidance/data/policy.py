"""The one policy for bad rows of all sources: they are counted, listed, and fatal only above a set share.

Images are converted by the rules of :mod:`clip_guidance.images.load` (upright, opaque, 8-bit RGB). Conversions are
counted too, since a user may not know that a tenth of the data is CMYK.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_guidance.data.records import REASONS, BadRow, Pair, Record

MAX_TRACKED_CAPTIONS = 1_000_000  # distinct captions in memory to find duplicates: at most some 100 MB


class TooManyBadRows(ValueError):
    """More rows are bad than the policy allows; the message counts them and names the first.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from clip_guidance.data import TooManyBadRows, open_pairs
        >>> folder = Path(tempfile.mkdtemp(), "apple")
        >>> folder.mkdir()
        >>> _ = (folder / "1.png").write_text("not an image")
        >>> try:
        ...     list(open_pairs(folder.parent))
        ... except TooManyBadRows as error:
        ...     print(str(error).split(": ")[1])
        none of 1 rows gives a pair
    """


@dataclass(frozen=True)
class Policy:
    """Say which rows are bad, and how many may be.

    Attributes:
        max_bad_share: Share of the rows read, in [0, 1], above which bad rows end the reading with
            :class:`TooManyBadRows`.
        min_rows: Number of rows before which the share is not checked, unless the epoch ends.
        max_pixels: Width times height above which an image is bad; its header says so before anything is decoded.
            Pillow itself rejects images above twice ``PIL.Image.MAX_IMAGE_PIXELS``, which is the default here.
        min_side: Side in pixels below which an image is bad. The default rejects 1 × 1 spacers.
        max_bytes: Size of an encoded image above which it is bad.

    Raises:
        ValueError: A value is out of range.

    Example:
        >>> from clip_guidance.data import Policy
        >>> Policy(max_bad_share=0.01).min_side
        2
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
class DecodeResult:
    """The pair that a record gives, or why it gives none; neither where it was excluded.

    Attributes:
        record: What was read.
        pair: The pair; None where the row is bad or excluded.
        bad: Why the row is bad; None where it is good or excluded.
        notes: What had to be done to the image or the captions, such as "cmyk" or "caption_dropped".
        size: Width and height of the image as stored, in pixels, where known.
    """

    record: Record
    pair: Pair | None = None
    bad: BadRow | None = None
    notes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None

    @property
    def excluded(self) -> bool:
        """Whether the row was excluded by the reader's ``exclude``."""
        return self.pair is None and self.bad is None


@dataclass
class Counters:
    """Count the results of the rows of one epoch, and list the bad rows.

    Attributes:
        source: Name of the source, for messages.
        policy: How many rows may be bad.
        quarantine: JSONL file to which a line (origin, key, reason, detail) is appended for each bad row, at once.
        rows: Number of rows read, without the excluded ones.
        excluded: Number of excluded rows.
        bad: Number of bad rows by reason.
        notes: Number of good rows by what was done to them.
        captions: Number of captions in all good rows.
        duplicates: Number of captions that an earlier row had, among the first million different ones.
        smallest: (Width, height) in pixels of the good image with the fewest pixels; None where there is none.
        largest: (Width, height) in pixels of the good image with the most pixels; None where there is none.
        examples: The first three bad rows of each reason.
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
        """Number of rows that gave a pair."""
        return self.rows - self.bad.total()

    @property
    def bad_share(self) -> float:
        """Share of the rows that gave no pair, in [0, 1]."""
        return self.bad.total() / max(1, self.rows)

    def record(self, result: DecodeResult) -> None:
        """Count one row."""
        if result.excluded:
            self.excluded += 1
            return
        self.rows += 1
        if result.bad is not None:
            self._count_bad(result.record, result.bad)
        elif result.pair is not None and result.size is not None:
            self.notes.update(result.notes)
            self.smallest = min(self.smallest or result.size, result.size, key=math.prod)
            self.largest = max(self.largest or result.size, result.size, key=math.prod)
            for caption in result.pair.captions:
                self._count_caption(hash(caption))

    def check_bad_share(self, *, final: bool = False) -> None:
        """End the reading where too many rows are bad.

        Args:
            final: Whether the epoch has ended; before, fewer than ``policy.min_rows`` rows are not checked.

        Raises:
            TooManyBadRows: More than ``policy.max_bad_share`` of the rows are bad, or all of them.
        """
        checked = final or self.rows >= self.policy.min_rows
        if not checked or (self.good and self.bad_share <= self.policy.max_bad_share):
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
        first = next((f"; the first is {e[0]['key']}: {e[0]['detail']:.120}" for e in self.examples.values()), "")
        listed = f"; all are listed in {self.quarantine}" if self.quarantine else ""
        raise TooManyBadRows(f"{self.source}: {found}: {counts}{first}{listed}; see `clip-guidance data check`")

    def state_dict(self) -> dict[str, Any]:
        """Return the counts as a dict that JSON can hold."""
        return {
            "rows": self.rows,
            "excluded": self.excluded,
            "bad": dict(self.bad),
            "notes": dict(self.notes),
            "captions": self.captions,
            "duplicates": self.duplicates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the counts of a state, which has forgotten the captions and sizes it was made of."""
        self.rows, self.captions, self.duplicates = state["rows"], state["captions"], state["duplicates"]
        self.bad, self.notes = Counter(state["bad"]), Counter(state["notes"])
        self.excluded = state.get("excluded", 0)

    def _count_bad(self, record: Record, bad: BadRow) -> None:
        assert bad.reason in REASONS
        self.bad[bad.reason] += 1
        line = {"origin": record.origin, "key": record.key, "reason": bad.reason, "detail": bad.detail}
        if len(examples := self.examples.setdefault(bad.reason, [])) < 3:
            examples.append(line)
        if self.quarantine is not None:  # opened anew each time, so that a kill loses nothing; bad rows are few
            with self.quarantine.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _count_caption(self, code: int) -> None:
        self.captions += 1
        if code in self._seen:
            self.duplicates += 1
        elif len(self._seen) < MAX_TRACKED_CAPTIONS:
            self._seen.add(code)
