"""Export of an index to formats that anything reads: vectors as safetensors, the rest as one JSON line per image."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from clip_guidance._files import fsync_file, write_atomically
from clip_guidance.index.vectors import blocks

if TYPE_CHECKING:
    from clip_guidance.index.store import Store

EMBEDS, ENTRIES = "embeds.safetensors", "entries.jsonl"


def export(store: Store, folder: Path) -> int:
    """Write ``embeds.safetensors`` and ``entries.jsonl``, in the same order; return the number of images."""
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomically(folder / EMBEDS) as embeds, write_atomically(folder / ENTRIES) as entries:  # noqa: SIM117
        with store.reading() as vectors, embeds.open("wb") as matrix, entries.open("w", encoding="utf-8") as lines:
            rows = store.sound(vectors)
            matrix.write(_header(len(rows), store))
            for start, block in blocks(vectors, rows):
                matrix.write(block.astype("<f4").tobytes())
                for entry in store.by_rows(rows[start : start + len(block)]):
                    line = {"path": entry.path, "hash": entry.hash, "size": entry.size, "metadata": entry.metadata}
                    lines.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
            for file in (matrix, lines):  # both are on the disk before either takes the place of a former export
                fsync_file(file)
    return len(rows)


def _header(count: int, store: Store) -> bytes:
    """Build the head of a safetensors file with one tensor, by hand: the library wants all of it in memory.

    Format: the length of what follows (uint64), then JSON, padded so that the numbers are aligned
    (https://huggingface.co/docs/safetensors, "Format").
    """
    dim = store.meta["dim"]
    about = {key: str(store.meta[key]) for key in ("fingerprint", "model")}
    tensor = {"dtype": "F32", "shape": [count, dim], "data_offsets": [0, 4 * count * dim]}
    text = json.dumps({"__metadata__": about, "embeds": tensor}).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
