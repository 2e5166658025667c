"""Images and regions that CLIP steers a generated image to, as its record holds them.

An image is recorded by its path and a hash of its bytes: drawn again with another file in its place, the image would
come out differently without a word. Nothing here is slow to import, because the command line reads its options so.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from reprlib import repr as shortened
from typing import Any

from clip_guidance._files import is_valid_text
from clip_guidance.images.files import ImageError, content_hash, read_bytes

MAX_PATH = 4_096  # characters
_FILE = "file:"  # before the path of an image, where a text may stand, too


@dataclass(frozen=True)
class ImageFile:
    """Name an image by its file.

    Attributes:
        path: Path of the file, as it was given.
        hash: BLAKE2b-128 of its bytes, 32 hexadecimal digits.

    Raises:
        ValueError: One of them is no such text.
    """

    path: str
    hash: str

    def __post_init__(self) -> None:
        if not (isinstance(self.path, str) and 0 < len(self.path) <= MAX_PATH and is_valid_text(self.path)):
            raise ValueError(f"path must be the path of an image, got {shortened(self.path)}")
        if not (isinstance(self.hash, str) and len(self.hash) == 32 and set(self.hash) <= set("0123456789abcdef")):
            raise ValueError(f"hash must be 32 hexadecimal digits, got {shortened(self.hash)}")

    @classmethod
    def read(cls, path: str) -> ImageFile:
        """Name the image that lies at this path now.

        Raises:
            ImageError: The file cannot be read.
        """
        return cls(path, content_hash(read_bytes(path)))

    @classmethod
    def from_record(cls, value: Any) -> ImageFile:
        """Make it from what a record holds.

        Raises:
            ValueError: It is something else.
        """
        return cls(**_fields(value, ("path", "hash")))

    def bytes(self) -> bytes:
        """Read the file.

        Raises:
            ImageError: It cannot be read, or is not the file that it was.
        """
        data = read_bytes(self.path)
        if (found := content_hash(data)) != self.hash:
            raise ImageError(self.path, f"is another image than was steered to (hash {found} instead of {self.hash})")
        return data


@dataclass(frozen=True)
class PlacedTarget:
    """Hold a text or an image that a part of the image is steered to.

    Attributes:
        target: The text, or the image.
        box: Left, top, right and bottom of the part, as fractions of the image's width and height.

    Raises:
        ValueError: The text is empty, or the box is empty or not inside of the image.

    Example:
        >>> from clip_guidance.generation.targets import PlacedTarget
        >>> PlacedTarget.parse("a red apple@0,0,0.5,1")
        PlacedTarget(target='a red apple', box=(0.0, 0.0, 0.5, 1.0))
    """

    target: str | ImageFile
    box: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        if isinstance(self.target, str) and not (self.target.strip() and is_valid_text(self.target)):
            raise ValueError(f"target must be a text with at least one word, got {shortened(self.target)}")
        if not isinstance(self.target, str | ImageFile):
            raise ValueError(f"target must be a text or an image, got {shortened(self.target)}")
        left, top, right, bottom = self.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):  # NaN is in no range
            raise ValueError(
                f"box must be left,top,right,bottom in [0, 1] with left < right and top < bottom, got {self.box}"
            )

    @classmethod
    def parse(cls, text: str, folder: str = "") -> PlacedTarget:
        """Read ``a red apple@0,0,0.5,1``, or ``file:apple.png@0,0,0.5,1`` for an image.

        Args:
            text: What is read.
            folder: Where the path of an image starts.

        Raises:
            ValueError: The text has another form.
            ImageError: The image cannot be read.
        """
        target, _, place = text.rpartition("@")
        try:
            numbers = [float(number) for number in place.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != 4 or not target:
            raise ValueError(f"expected TEXT@left,top,right,bottom, such as 'a red apple@0,0,0.5,1', got {text!r:.80}")
        left, top, right, bottom = numbers
        image = ImageFile.read(os.path.join(folder, target.removeprefix(_FILE))) if target.startswith(_FILE) else None
        return cls(image or target, (left, top, right, bottom))

    @classmethod
    def from_record(cls, value: Any) -> PlacedTarget:
        """Make it from what a record holds.

        Raises:
            ValueError: It is something else.
        """
        found = _fields(value, ("target", "box"))
        target, box = found["target"], found["box"]
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise ValueError(f"box must be four numbers, got {shortened(box)}")
        left, top, right, bottom = map(float, box)
        return cls(target if isinstance(target, str) else ImageFile.from_record(target), (left, top, right, bottom))


def _fields(value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"expected {' and '.join(names)}, got {shortened(value)}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
