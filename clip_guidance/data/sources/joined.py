"""Join several sources into one: their parts follow one another, and shuffling mixes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clip_guidance.data.records import Part, Record, Source


class JoinedSource:
    """Read several sources as one :class:`.Source`.

    Args:
        sources: The sources, in order.
    """

    kind = "several sources"

    def __init__(self, sources: Sequence[Source]):
        self.name = ", ".join(source.name for source in sources)
        self._places = [(source, index) for source in sources for index in range(len(source.parts))]
        self.parts: list[Part] = [source.parts[index] for source, index in self._places]

    def read(self, index: int) -> Iterator[Record]:
        """Yield the records of a part."""
        source, place = self._places[index]
        return source.read(place)
