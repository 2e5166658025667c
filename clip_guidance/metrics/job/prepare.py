"""From the bytes of a file to what is missing of it (prompt, guide, pixels), in threads ahead of the encoder.

PIL decodes and resizes without Python's lock, so several threads work at a time. The number of items in work is
bounded, so memory does not grow with their total. The results are in the order of the items.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from PIL import Image
from torch import Tensor

from clip_guidance._files import is_valid_text
from clip_guidance.clip.embed_cache import EmbedCache
from clip_guidance.images.decoders import open_image
from clip_guidance.images.files import NO_MEMORY, check_name, content_hash, read_bytes
from clip_guidance.images.load import ImageError, load_image
from clip_guidance.images.metadata import read_record
from clip_guidance.metrics.job.items import ScoreItem
from clip_guidance.metrics.job.judge import Judge
from clip_guidance.metrics.job.store import ScoreRow, ScoreStore

NO_PROMPT = "holds no prompt; give --prompt or --prompts-file"
NO_PROMPT_IN_ROW = "holds no prompt, and {} has none; give --prompt"


@dataclass
class PreparedItem:
    """Hold what is known of an item before anything is encoded.

    Attributes:
        item: The item.
        failure: Reason why the item cannot be scored; None where it can.
        prompt: Prompt that was given or is stored in the image; empty where there is none and none is needed.
        hash: Hash of the file's bytes.
        guides: Fingerprints of the CLIPs and rewards that steered the image, or chose it among candidates, as far as
            they are recorded.
        known: Scores of earlier runs, by the ids of their records.
        embeds: Embeddings found in the cache, by the judge's place.
        pixels: Pixels for those judges that must encode the image, by their place.
    """

    item: ScoreItem
    failure: str | None = None
    prompt: str = ""
    hash: str = ""
    guides: frozenset[str] = frozenset()
    known: dict[str, ScoreRow] = field(default_factory=dict)
    embeds: dict[int, Tensor] = field(default_factory=dict)
    pixels: dict[int, Tensor] = field(default_factory=dict)


class Preparer:
    """Prepare items for some judges; may be called from several threads.

    Args:
        judges: Judges that score the items.
        known: Scores of earlier runs.
        cache: Cache of embeddings; None for no cache.
        draft: Let the JPEG decoder shrink images to no less than twice the size that CLIP reads: quicker for large
            photographs, and not the same pixels.
    """

    def __init__(
        self, judges: Sequence[Judge], known: ScoreStore, cache: EmbedCache | None, draft: bool = False
    ) -> None:
        self.judges, self.known, self.cache = judges, known, cache
        self.needs_prompt = any(d.score.needs_prompt for judge in judges for d in judge.definitions)
        self.draft_side = 2 * max(max(judge.image_processor.sides) for judge in judges) if draft else 0

    def __call__(self, item: ScoreItem) -> PreparedItem:
        """Prepare an item, or say why it failed.

        Raises:
            ScoresError: The scores of earlier runs cannot be read.
            EmbedCacheError: The cache is damaged.
        """
        prepared = PreparedItem(item, item.problem)
        if item.source is not None and item.problem is None:
            try:
                if isinstance(item.source, str):
                    check_name(item.source)
                self._prepare(prepared, read_bytes(item.source) if isinstance(item.source, str) else item.source)
            except ImageError as error:
                prepared.failure = error.reason
            except MemoryError:
                prepared.failure = NO_MEMORY
        return prepared

    def _prepare(self, prepared: PreparedItem, data: bytes) -> None:
        item = prepared.item
        record = read_record(io.BytesIO(data)) or {}
        prepared.hash = content_hash(data)
        settings = record.get("settings", {})
        prepared.guides = _guides(record)
        stored = (settings.get(name) for name in ("clip_prompt", "prompt"))
        texts = (text for text in (item.prompt, *stored) if isinstance(text, str) and text.strip())
        prepared.prompt = next(texts, "")
        if self.needs_prompt and not prepared.prompt:
            load_image(data, item.name)  # raises the better reason where the file is no image
            raise ImageError(item.name, NO_PROMPT_IN_ROW.format(item.row) if item.row else NO_PROMPT)
        if not is_valid_text(prepared.prompt):
            raise ImageError(item.name, f"its prompt is no valid text: {prepared.prompt!a:.60}")
        prepared.known = self.known.known(item.name, prepared.prompt, prepared.hash)
        missing = [
            place
            for place, judge in enumerate(self.judges)
            if any(definition.id not in prepared.known for definition in judge.definitions)
        ]
        for place in missing:
            judge = self.judges[place]
            if self.cache is None or judge.embed_dim is None:
                continue
            if (embed := self.cache.get(judge.key, prepared.hash, judge.embed_dim)) is not None:
                prepared.embeds[place] = embed
        if encode := [place for place in missing if place not in prepared.embeds]:
            image = self._decode(data, item.name)
            prepared.pixels = {place: self.judges[place].image_processor(image) for place in encode}

    def _decode(self, data: bytes, name: str) -> Image.Image:
        if self.draft_side and data[:2] == b"\xff\xd8":  # a JPEG, whose decoder can shrink by 2, 4 or 8
            try:
                image = open_image(io.BytesIO(data))
                image.draft("RGB", (self.draft_side, self.draft_side))
                return load_image(image, name)
            except Exception:  # Pillow raises anything, also for too many pixels; load_image names the reason better
                pass
        return load_image(data, name)


def _guides(record: Mapping[str, Any]) -> frozenset[str]:
    """Return the fingerprints of what steered or chose an image, by its record, which anybody may have written."""
    scores, choice = record.get("scores"), record.get("choice")
    by = [one for one in scores if isinstance(one, dict) and one.get("guided")] if isinstance(scores, list) else []
    ranked_by = choice.get("ranked_by") if isinstance(choice, dict) else None
    by += ranked_by if isinstance(ranked_by, list) else []
    found = (one.get("fingerprint") for one in (record.get("guide"), *by) if isinstance(one, dict))
    return frozenset(one for one in found if isinstance(one, str))


def in_blocks(prepared: Iterable[PreparedItem], size: int) -> Iterator[list[PreparedItem]]:
    """Group consecutive items by their positions: the same blocks whoever computes them and wherever a run begins."""
    for _, block in groupby(prepared, key=lambda each: each.item.position // size):
        yield list(block)


def own_blocks(items: Iterable[ScoreItem], size: int, rank: int, count: int) -> Iterator[ScoreItem]:
    """Yield the items of every ``count``-th block, beginning with block ``rank``."""
    return (item for item in items if item.position // size % count == rank)
