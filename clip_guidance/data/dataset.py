"""Captioned images in memory, and the phrases that caption them.

A table has one row an image: the encoded image, its ``name`` ("butterfly"), its drawing ``style`` ("twemoji") and
``keywords``. Images are decoded once into one uint8 tensor; a caption is drawn anew each time an image is seen, from
phrases over the columns, so that the text tower meets the words in every role (style alone, name alone, keywords).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip_guidance.images.load import ImageError, load_image

SIDED = re.compile(r"left|right|clock|thirty|button|input|flag|arrow|keycap|mark", re.IGNORECASE)  # in a name


@dataclass(frozen=True)
class Row:
    """What is known of one image."""

    name: str
    style: str
    keywords: tuple[str, ...]
    captions: tuple[str, ...] = ()  # where the data has whole captions: they take the place of phrases

    @property
    def prompt(self) -> str:
        """The full caption, the same every time: names the style and the concept."""
        return self.captions[0] if self.captions else f"a {self.style} picture of a {self.name}"

    @property
    def mirrors(self) -> bool:
        """Whether a mirror image shows the same concept."""
        return not SIDED.search(self.name)


def styled(row: Row, rng: random.Random) -> str:
    """Style and name in full."""
    return row.prompt


def short(row: Row, rng: random.Random) -> str:
    """Style and name, nothing else."""
    return f"{row.style} {row.name}"


def name_only(row: Row, rng: random.Random) -> str:
    """The name in any style."""
    return rng.choice([row.name, f"a {row.name}", f"a picture of a {row.name}"])


def with_keywords(row: Row, rng: random.Random) -> str:
    """The name, then up to three keywords, and half the time the style."""
    words = [row.name, *rng.sample(row.keywords, min(len(row.keywords), rng.randint(1, 3)))]
    if rng.random() < 0.5:
        words.append(row.style)
    return ", ".join(words)


Phrases: TypeAlias = tuple[tuple[float, Callable[[Row, random.Random], str]], ...]

PHRASES: Phrases = (
    (0.25, styled),
    (0.1, short),
    (0.4, name_only),
    (0.25, with_keywords),
)


# A model that draws learns faster from texts that say which of the styles it is; a few do not, since users do not.
DRAWING_PHRASES: Phrases = ((0.45, styled), (0.2, short), (0.15, name_only), (0.2, with_keywords))


def caption(row: Row, rng: random.Random, phrases: Phrases = PHRASES) -> str:
    """One of the row's captions, or where it has none one of ``phrases``, drawn with their weights."""
    if row.captions:
        return rng.choice(row.captions)
    weights, make = zip(*phrases, strict=True)
    return rng.choices(make, weights)[0](row, rng)


class CaptionedImages:
    """Images and what they show, all in memory.

    Attributes:
        images: uint8 tensor (N, 3, H, W).
        rows: N :class:`Row`.
        skipped: (row number, reason) of the rows left out because their image cannot be read.
    """

    def __init__(self, images: Tensor, rows: Sequence[Row], skipped: Sequence[tuple[int, str]] = ()):
        if len(images) != len(rows):
            raise ValueError(f"expected one row an image, got {len(images)} images and {len(rows)} rows")
        self.images = images
        self.rows = list(rows)
        self.skipped = list(skipped)

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def from_parquet(cls, path: str | Path, size: int = 64, exclude: str | None = None) -> CaptionedImages:
        """Reads a table with the columns ``image`` {bytes}, ``name``, ``style`` and ``keywords``.

        Args:
            path: a ``.parquet`` file.
            size: side of the square images, in pixels; others are resized.
            exclude: rows whose name contains this are left out ("skin tone").

        Raises:
            FileNotFoundError: ``path`` does not exist.
            ValueError: a column is missing, or no row is left.
        """
        import pyarrow.parquet as pq

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no table of images at {path}")
        missing = {"image", "name", "style", "keywords"} - set(pq.read_schema(path).names)
        if missing:
            raise ValueError(f"{path}: expected the columns image, name, style, keywords; {sorted(missing)} missing")
        images, rows, skipped = [], [], []
        for i, record in enumerate(pq.read_table(path).to_pylist()):
            if not record["name"] or not record["style"]:
                skipped.append((i, "has no name or no style"))
                continue
            if exclude and exclude in record["name"]:
                continue
            try:
                image = _decode(record["image"]["bytes"], size)
            except ImageError as error:  # one unreadable image must not end a training run
                skipped.append((i, error.reason))
                continue
            images.append(image)
            rows.append(Row(record["name"], record["style"], tuple(record["keywords"] or ())))
        if not rows:
            raise ValueError(f"{path}: no usable image ({len(skipped)} unreadable, exclude={exclude!r})")
        return cls(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), rows, skipped)

    @classmethod
    def load(cls, path: str | Path, size: int = 64, exclude: str | None = None) -> CaptionedImages:
        """Reads a parquet table of names, styles and keywords, or whatever else :meth:`from_pairs` reads.

        Args:
            path: where the images are.
            size: side of the square images, in pixels; others are resized.
            exclude: rows whose name, or of other layouts a caption, contains this are left out.
        """
        import pyarrow.parquet as pq

        if Path(path).suffix == ".parquet" and Path(path).is_file() and "keywords" in pq.read_schema(path).names:
            return cls.from_parquet(path, size, exclude)
        return cls.from_pairs(path, size, exclude=exclude)

    @classmethod
    def from_pairs(cls, path: str | Path, size: int = 64, **options: Any) -> CaptionedImages:
        """Reads all pairs of whatever :func:`clip_guidance.data.open_pairs` opens.

        A row's name is its first caption, its style is empty, and its captions are those of the data.

        Args:
            path: a folder of images, a table, tars, or a data set of the Hub.
            size: side of the square images, in pixels; others are resized.
            options: of ``open_pairs``: ``policy``, ``workers``, ``quarantine``, ``caption_columns``, ...

        Raises:
            SourceError: there is nothing to read.
            TooManyBadRows: more rows are bad than the policy allows, or all are.
        """
        from clip_guidance.data import open_pairs

        pairs = open_pairs(path, transform=lambda image: square(image, size), **options)
        images, rows, skipped = [], [], []
        for outcome in pairs.outcomes():
            if outcome.pair is None:
                skipped.append((pairs.row - 1, str(outcome.bad)))
                continue
            images.append(outcome.pair.image)
            rows.append(Row(outcome.pair.captions[0], "", (), outcome.pair.captions))
        pairs.ledger.judge(final=True)
        return cls(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), rows, skipped)

    @classmethod
    def join(cls, parts: Sequence[CaptionedImages]) -> CaptionedImages:
        """The images of all parts, in order; their sizes must agree."""
        images = torch.cat([part.images for part in parts])
        return cls(images, [row for part in parts for row in part.rows], [s for part in parts for s in part.skipped])

    def subset(self, indices: Sequence[int]) -> CaptionedImages:
        """The images at ``indices``, in that order."""
        return CaptionedImages(self.images[torch.as_tensor(list(indices))], [self.rows[i] for i in indices])


def _decode(data: bytes, size: int) -> np.ndarray:
    return square(load_image(data), size)


def square(image: Image.Image, size: int) -> np.ndarray:
    """uint8 (size, size, 3) of an RGB image."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)
