"""Several sources as one: their parts, one source after the other; shuffling mixes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clip_guidance.data.records import Part, Record, Source


class JoinedSource:
    """All of some sources; a :class:`~clip_guidance.data.records.Source`."""

    kind = "several sources"

    def __init__(self, sources: Sequence[Source]):
        self.name = ", ".join(source.name for source in sources)
        self._places = [(source, index) for source in sources for index in range(len(source.parts))]
        self.parts: list[Part] = [source.parts[index] for source, index in self._places]

    def read(self, index: int) -> Iterator[Record]:
        """The records of a part."""
        source, place = self._places[index]
        return source.read(place)
