"""Hold captioned images in memory, and draw captions for them from phrases.

A table has one row per image: the encoded image, its ``name`` ("butterfly"), its drawing ``style`` ("twemoji") and
``keywords``. Images are decoded once into one uint8 tensor. A caption is drawn anew each time an image is used, from
phrases over the columns, so that the text tower sees the words in every role (style alone, name alone, keywords).
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

from clip_guidance.data.open import open_pairs
from clip_guidance.data.records import SourceError
from clip_guidance.data.sources.table import import_parquet
from clip_guidance.images.load import ImageError, load_image

# A concept whose name matches changes its meaning when its image is mirrored.
NOT_MIRRORABLE = re.compile(r"left|right|clock|thirty|button|input|flag|arrow|keycap|mark", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """What the data says of one image.

    Attributes:
        name: The concept that the image shows.
        style: The style in which it is drawn; empty where there is none.
        keywords: Further words for the concept.
        captions: Whole captions, where the data has them; they replace the phrases.
    """

    name: str
    style: str
    keywords: tuple[str, ...]
    captions: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The full caption, the same every time: it names the style and the concept."""
        return self.captions[0] if self.captions else f"a {self.style} picture of a {self.name}"

    @property
    def mirrors(self) -> bool:
        """Whether the mirrored image shows the same concept."""
        return not NOT_MIRRORABLE.search(self.name)


def styled(row: Row, rng: random.Random) -> str:
    """Name style and concept in a full caption."""
    return row.prompt


def short(row: Row, rng: random.Random) -> str:
    """Name style and concept, and nothing else."""
    return f"{row.style} {row.name}"


def name_only(row: Row, rng: random.Random) -> str:
    """Name the concept without its style."""
    return rng.choice([row.name, f"a {row.name}", f"a picture of a {row.name}"])


def with_keywords(row: Row, rng: random.Random) -> str:
    """Name the concept, then up to three keywords, and half the time the style."""
    words = [row.name, *rng.sample(row.keywords, min(len(row.keywords), rng.randint(1, 3)))]
    if rng.random() < 0.5:
        words.append(row.style)
    return ", ".join(words)


def keywords_only(row: Row, rng: random.Random) -> str:
    """Say up to three keywords and half the time the style, without the name; the name where there are none."""
    if not row.keywords:
        return name_only(row, rng)
    words = rng.sample(row.keywords, min(len(row.keywords), rng.randint(1, 3)))
    if row.style and rng.random() < 0.5:
        words.append(row.style)
    return rng.choice([", ", " and ", " "]).join(words)


Phrases: TypeAlias = tuple[tuple[float, Callable[[Row, random.Random], str]], ...]

PHRASES: Phrases = (
    (0.25, styled),
    (0.1, short),
    (0.4, name_only),
    (0.25, with_keywords),
)


# A model that draws learns faster from texts that name the style. A few texts do not, because users do not.
DRAWING_PHRASES: Phrases = ((0.45, styled), (0.2, short), (0.15, name_only), (0.2, with_keywords))


def caption(row: Row, rng: random.Random, phrases: Phrases = PHRASES) -> str:
    """Draw a caption for a row: one of its own captions, or else a phrase.

    Args:
        row: What the data says of the image.
        rng: What the choice is drawn from.
        phrases: (Weight, function) of each phrase; the weights need not add up to 1.

    Example:
        >>> import random
        >>> from clip_guidance.data.dataset import Row, caption, name_only
        >>> caption(Row("red apple", "noto", ("fruit",)), random.Random(0), ((1.0, name_only),))
        'a red apple'
    """
    if row.captions:
        return rng.choice(row.captions)
    weights, make = zip(*phrases, strict=True)
    return rng.choices(make, weights)[0](row, rng)


class CaptionedImages:
    """Hold images and what the data says of them in memory.

    Args:
        images: Uint8 tensor (N, 3, H, W).
        rows: One :class:`Row` per image.
        skipped: (Row number, reason) of the rows that were left out because they are bad.

    Attributes:
        images: As given.
        rows: As given, a list.
        skipped: As given, a list.

    Raises:
        ValueError: There are more or fewer rows than images.

    Example:
        >>> import torch
        >>> from clip_guidance.data import CaptionedImages
        >>> from clip_guidance.data.dataset import Row
        >>> rows = [Row("red apple", "noto", ("fruit",)), Row("rocket", "noto", ("space",))]
        >>> data = CaptionedImages(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), rows)
        >>> len(data), data.subset([1]).rows[0].prompt
        (2, 'a noto picture of a rocket')
    """

    def __init__(self, images: Tensor, rows: Sequence[Row], skipped: Sequence[tuple[int, str]] = ()):
        if len(images) != len(rows):
            raise ValueError(f"expected one row per image, got {len(images)} images and {len(rows)} rows")
        self.images = images
        self.rows = list(rows)
        self.skipped = list(skipped)

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def from_parquet(cls, path: str | Path, size: int = 64, exclude: str | None = None) -> CaptionedImages:
        """Read a table with the columns ``image`` {bytes}, ``name``, ``style`` and ``keywords``.

        Args:
            path: A ``.parquet`` file.
            size: Side of the square images in pixels; images of another size are resized.
            exclude: Rows whose name contains this text ("skin tone") are left out.

        Raises:
            FileNotFoundError: There is no file at ``path``.
            SourceError: ``pyarrow``, which reads such tables, is not installed, a column is missing, or no row is left.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no table of images at {path}")
        pq = import_parquet(path)
        missing = {"image", "name", "style", "keywords"} - set(pq.read_schema(path).names)
        if missing:
            raise SourceError(f"{path}: expected the columns image, name, style, keywords; {sorted(missing)} missing")
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
            raise SourceError(f"{path}: no usable image ({len(skipped)} unreadable, exclude={exclude!r})")
        return cls(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), rows, skipped)

    @classmethod
    def load(cls, path: str | Path, size: int = 64, exclude: str | None = None) -> CaptionedImages:
        """Load a parquet table of names, styles and keywords, or whatever :meth:`from_pairs` reads.

        Args:
            path: Where the images are.
            size: Side of the square images in pixels; images of another size are resized.
            exclude: Rows whose name (of other layouts: one of whose captions) contains this text are left out.
        """
        file = Path(path)
        is_table = file.suffix == ".parquet" and file.is_file()
        if is_table and "keywords" in import_parquet(file).read_schema(file).names:
            return cls.from_parquet(path, size, exclude)
        return cls.from_pairs(path, size, exclude=exclude)

    @classmethod
    def from_pairs(cls, path: str | Path, size: int = 64, **options: Any) -> CaptionedImages:
        """Read all pairs of whatever :func:`clip_guidance.data.open_pairs` opens.

        A row's name is its first caption, its style is empty, and its captions are those of the data.

        Args:
            path: A folder of images, a table, tars, or a data set of the Hub.
            size: Side of the square images in pixels; images of another size are resized.
            **options: Options of ``open_pairs``: ``policy``, ``workers``, ``quarantine``, ``caption_columns``, ...

        Raises:
            SourceError: There is nothing to read.
            TooManyBadRows: More rows are bad than the policy allows, or all are.
        """
        pairs = open_pairs(path, transform=lambda image: square(image, size), **options)
        images, rows, skipped = [], [], []
        for result in pairs.results():
            if result.pair is None:
                skipped.append((pairs.row - 1, str(result.bad)))
                continue
            images.append(result.pair.image)
            rows.append(Row(result.pair.captions[0], "", (), result.pair.captions))
        pairs.counters.check_bad_share(final=True)
        return cls(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), rows, skipped)

    @classmethod
    def join(cls, parts: Sequence[CaptionedImages]) -> CaptionedImages:
        """Join the images of all parts, in order; they must have one size."""
        images = torch.cat([part.images for part in parts])
        return cls(images, [row for part in parts for row in part.rows], [s for part in parts for s in part.skipped])

    def subset(self, indices: Sequence[int]) -> CaptionedImages:
        """Select the images at ``indices``, in that order."""
        return CaptionedImages(self.images[torch.as_tensor(list(indices))], [self.rows[i] for i in indices])


def _decode(data: bytes, size: int) -> np.ndarray:
    return square(load_image(data), size)


def square(image: Image.Image, size: int) -> np.ndarray:
    """Resize an RGB image to a square; return it as uint8 (size, size, 3)."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)
