"""The one image loader: every image that enters the package passes through here.

The rules are written down because image readers differ silently, and scores change with them:

- EXIF orientation is applied, and transparency is composited on white. The first frame of an animation is taken, which
  the log of this module says once.
- Grey, palette and CMYK images become RGB. 16-bit and float images are scaled to 8 bits, where PIL's
  ``convert("RGB")`` would saturate them to white.
- PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, PPM and ICO are read (:mod:`.decoders`), whatever a file is named.
- Images above 179 megapixels (twice PIL.Image.MAX_IMAGE_PIXELS) are rejected before they are decoded, and files that
  are not regular are never opened: reading a pipe could wait for ever.
- What cannot be read raises an ``ImageError`` that names the file and the reason; ``load_images`` can skip and report
  such files, so that one corrupt image in ten thousand costs one line.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from clip_guidance.images.decoders import foreign_format, open_image
from clip_guidance.images.files import NO_MEMORY, read_bytes
from clip_guidance.images.files import ImageError as ImageError
from clip_guidance.images.find import EXTENSIONS as EXTENSIONS
from clip_guidance.images.find import find_images as find_images

ImageSource: TypeAlias = Image.Image | str | os.PathLike[str] | bytes | np.ndarray | torch.Tensor

_log = logging.getLogger(__name__)
_warned: set[str] = set()  # the warnings that were logged already

_EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")
_SEARCHED_BYTES = 4096  # at the beginning of a file: an SVG may open with comments
_FOREIGN_FORMATS = {
    "HEIC": (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1"),
    "SVG": (b"<svg",),
    "PDF": (b"%PDF",),
}


@dataclass(frozen=True)
class Skipped:
    """An image that was passed over.

    Attributes:
        path: What the image is called: its path, or ``image 7``.
        reason: Why it cannot be read.
    """

    path: str
    reason: str


@dataclass
class ImageBatch:
    """Consecutive readable images of a longer list, and the unreadable ones among them.

    Attributes:
        images: RGB images.
        names: The path (or ``image 7``) of each image.
        indices: The position of each image in the list that was given.
        skipped: The images that could not be read.
    """

    images: list[Image.Image] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)


def load_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """Load one image.

    Args:
        source: A PIL image, a path, the bytes of a file, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a
            tensor (1, H, W), (3, H, W) or (4, H, W); numbers are bool, uint8, uint16 or float in [0, 1]. A fourth
            channel is opacity.
        name: What to call the image in an error; by default its path.

    Returns:
        An 8-bit RGB image, upright and opaque.

    Raises:
        ImageError: The image cannot be read; the message names it and says why.

    Example:
        >>> import numpy as np
        >>> from clip_guidance.images.load import load_image
        >>> image = load_image(np.full((4, 6), 0.5))
        >>> image.mode, image.size, image.getpixel((0, 0))
        ('RGB', (6, 4), (128, 128, 128))
    """
    name = name or image_name(source)
    try:
        image = _open(source)
        rgb = _to_rgb(image)
    except ImageError as error:
        raise ImageError(name, error.reason) from error
    except Image.DecompressionBombError as error:
        most = f"{2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} megapixels"
        reason = f"too large, above the cap of {most} ({error}); trusted? raise PIL.Image.MAX_IMAGE_PIXELS"
        raise ImageError(name, reason) from None
    except MemoryError:
        raise ImageError(name, NO_MEMORY) from None
    except Exception as error:  # Pillow's decoders raise anything: OSError, SyntaxError, struct.error, ...
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(name, f"cannot be read ({reason})") from error
    if image is not source:  # the frame of a PIL image was chosen by whoever passed it
        _warn_of_frames(image, name)
    return rgb


def load_images(
    sources: Iterable[ImageSource], batch_size: int = 64, on_error: Literal["raise", "skip"] = "raise"
) -> Iterator[ImageBatch]:
    """Load many images, ``batch_size`` at a time, in constant memory.

    Args:
        sources: Images as for ``load_image``; may be a generator.
        batch_size: Number of readable images per batch; the last batch may hold fewer, or only skipped ones.
        on_error: "raise" stops at the first unreadable image, "skip" reports it in ``ImageBatch.skipped``.

    Yields:
        Batches, in order.

    Raises:
        ImageError: An image cannot be read and ``on_error`` is "raise".
        ValueError: ``on_error`` is something else.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
    batch = ImageBatch()
    for index, source in enumerate(sources):
        name = image_name(source, index)
        try:
            image = load_image(source, name)
        except ImageError as error:
            if on_error == "raise":
                raise
            batch.skipped.append(Skipped(name, error.reason))
            continue
        batch.images.append(image)
        batch.names.append(name)
        batch.indices.append(index)
        if len(batch) == batch_size:
            yield batch
            batch = ImageBatch()
    if batch.images or batch.skipped:
        yield batch


def as_list(images: Any) -> list[ImageSource]:
    """Turn one image or many into a list of single images.

    Args:
        images: Anything ``load_image`` takes, a list of these, or a batch: a tensor (B, C, H, W) or an array
            (B, H, W, C).

    Raises:
        ValueError: The list is empty.
    """
    batched = isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4
    single = isinstance(images, (Image.Image, str, os.PathLike, bytes, np.ndarray, torch.Tensor)) and not batched
    listed = [images] if single else list(images)
    if not listed:
        raise ValueError("expected at least one image, got an empty list")
    return listed


def image_name(source: ImageSource, index: int | None = None) -> str:
    """Return what to call an image in a message: its path, or ``image 7``."""
    if isinstance(source, Image.Image):
        source = getattr(source, "filename", "")
    named = isinstance(source, (str, os.PathLike)) and os.fspath(source)
    return str(source) if named else "image" if index is None else f"image {index}"


def _open(source: ImageSource) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, torch.Tensor):
        if source.ndim != 3 or source.shape[0] not in (1, 3, 4):
            raise ImageError("", f"expected a tensor (3, H, W), got {tuple(source.shape)}")
        wide = source.float() if source.is_floating_point() else source  # numpy has no bfloat16
        return _from_array(wide.detach().cpu().permute(1, 2, 0).numpy())
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        if path.startswith(("http://", "https://")):
            raise ImageError("", "is an address; download the image and give its path")
        source = read_bytes(path)
    if isinstance(source, bytes):
        return _decode(source)
    raise ImageError("", f"expected a PIL image, path, bytes, array or tensor, got {type(source).__name__}")


def _decode(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("", "is empty (0 bytes)")
    try:
        return open_image(io.BytesIO(data))
    except UnidentifiedImageError:
        start = data[:_SEARCHED_BYTES]
        marked = (kind for kind, marks in _FOREIGN_FORMATS.items() if any(mark in start for mark in marks))
        kind = next(marked, None) or foreign_format(start)
        reason = f"{kind} is not supported; convert it to PNG or JPEG" if kind else "is not an image"
        raise ImageError("", reason) from None


def _from_array(array: np.ndarray) -> Image.Image:
    """Convert an array of pixels (H, W) or (H, W, C) to an 8-bit image."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or array.size == 0:
        raise ImageError("", f"expected an array (H, W) or (H, W, 3), got {array.shape}")
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if array.dtype == np.bool_:
        unit = array.astype(np.float64)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        unit = array / 65535.0
    elif array.dtype.kind == "f":
        unit = array
    else:
        raise ImageError("", f"expected bool, uint8, uint16 or float in [0, 1], got {array.dtype}")
    low, high = float(unit.min()), float(unit.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN fails too; decoders overshoot by rounding
        raise ImageError("", f"expected values in [0, 1], got {low:g} to {high:g}")
    return Image.fromarray((unit.clip(0, 1) * 255).round().astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()  # a truncated file fails here, before anything else is done with it
    image = _upright(image)
    if image.mode == "F":
        image = _from_array(np.asarray(image))
    elif image.mode.startswith("I"):  # I;16 and its byte orders; I is how some formats carry 16 bits
        image = _from_array(_as_uint16(np.asarray(image)))
    elif image.mode not in _EIGHT_BIT_MODES:
        raise ImageError("", f"colour mode {image.mode} is not supported; convert it to RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _warn_of_frames(image: Image.Image, name: str) -> None:
    """Log once that only the first frame of an animation is taken."""
    if "frames" in _warned or image.format == "MPO":  # the second image in a camera's MPO file is not a frame
        return
    try:
        several = getattr(image, "is_animated", False)
    except Exception:  # a broken second frame says nothing about the first
        several = False
    if several:
        _warned.add("frames")
        _log.warning("%s holds several frames; of this and other such images the first is taken", name)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF says nothing about the pixels
        return image


def _as_uint16(array: np.ndarray) -> np.ndarray:
    if array.min() < 0 or array.max() > 65535:
        raise ImageError("", f"expected 16-bit values, got {array.min()} to {array.max()}")
    return array.astype(np.uint16)
