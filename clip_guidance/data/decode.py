"""Decode a record into a pair, or find the one reason why it is bad, whatever source it came from."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from PIL import Image, UnidentifiedImageError

from clip_guidance._files import is_valid_text
from clip_guidance.data.policy import DecodeResult, Policy
from clip_guidance.data.records import BadRow, Pair, Record
from clip_guidance.images.decoders import open_image
from clip_guidance.images.load import ImageError, load_image

ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
MODES = {"CMYK": "cmyk", "P": "palette", "PA": "palette", "F": "16_bit", "L": "grey", "LA": "grey", "1": "grey"}
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # the second where warnings are errors


def decode(
    record: Record,
    policy: Policy,
    transform: Callable[[Image.Image], Any] | None = None,
    exclude: str | None = None,
) -> DecodeResult:
    """Decode a record; its captions are read first because they cost less.

    Args:
        record: What was read from the source.
        policy: Which rows are bad.
        transform: Makes ``Pair.image`` from the image (RGB). Its errors are not caught.
        exclude: Records of which a caption contains this text are left out, and their images are not read.

    Returns:
        The pair, or why the row is bad; neither for a record that was left out.
    """
    size = None
    try:
        if record.problem is not None:
            raise record.problem
        captions, notes = clean_captions(record.captions() if callable(record.captions) else record.captions)
        if exclude and any(exclude in caption for caption in captions):
            return DecodeResult(record)
        data = image_bytes(record, policy)
        header = open_header(data, policy)
        size = header.size
        notes += conversions(header)
        image = load_image(data, record.key)  # opened anew: conversions may have moved on to a second frame
    except BadRow as bad:
        return DecodeResult(record, bad=bad, size=size)
    except ImageError as error:
        return DecodeResult(record, bad=BadRow("corrupt", error.reason), size=size)
    pair = Pair(image if transform is None else transform(image), captions, record.key, record.origin)
    return DecodeResult(record, pair, notes=notes, size=size)


def clean_captions(values: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the captions that are texts, each once, and a note where some were dropped.

    Raises:
        BadRow: There is no caption that is a text.
    """
    texts = [value.strip() for value in values if isinstance(value, str) and is_valid_text(value)]
    kept = tuple(dict.fromkeys(text for text in texts if text))
    if kept:
        return kept, ("caption_dropped",) * (len(kept) < len(values))
    if wrong := [value for value in values if value is not None and not (isinstance(value, str) and not value.strip())]:
        found = f"{type(wrong[0]).__name__} {wrong[0]!r:.60}"
        if isinstance(wrong[0], str):
            found = "text that is not UTF-8; save it as UTF-8"
        raise BadRow("caption_not_text", f"expected a text, got {found}")
    raise BadRow("no_caption", "the caption is empty" if values else "there is no caption")


def image_bytes(record: Record, policy: Policy) -> bytes:
    """Read the encoded image.

    Raises:
        BadRow: The image is missing, cannot be read, is empty or above ``policy.max_bytes``.
    """
    if record.image is None:
        raise BadRow("no_image", "there is no image")
    data = record.image if isinstance(record.image, bytes) else record.image.read(policy.max_bytes)
    if not data:
        raise BadRow("empty", "is empty (0 bytes)")
    if len(data) > policy.max_bytes:
        raise BadRow("too_many_bytes", f"{len(data)} bytes, more than max_bytes={policy.max_bytes}")
    return data


def open_header(data: bytes, policy: Policy) -> Image.Image:
    """Open an image without decoding it.

    Raises:
        BadRow: It is not an image, or the policy does not allow its size.
    """
    try:
        header = open_image(io.BytesIO(data))
        width, height = header.size
    except _BOMBS as error:
        raise BadRow("too_large", str(error)) from None
    except UnidentifiedImageError:
        raise BadRow("unknown_format", _why_unknown(data)) from None
    except Exception as error:  # Pillow's decoders raise anything: OSError, SyntaxError, struct.error, ...
        raise BadRow("corrupt", f"cannot be read ({str(error) or type(error).__name__})") from None
    if width * height > policy.max_pixels:
        raise BadRow("too_large", f"{width} × {height} pixels, more than max_pixels={policy.max_pixels}")
    if min(width, height) < policy.min_side:
        raise BadRow("too_small", f"{width} × {height} pixels, a side is below min_side={policy.min_side}")
    return header


def conversions(header: Image.Image) -> tuple[str, ...]:
    """List what has to be done to the image to make it upright, opaque, 8-bit RGB."""
    notes = ["16_bit"] if header.mode.startswith("I") else []
    notes += [MODES[header.mode]] if header.mode in MODES else []
    try:
        notes += ["alpha"] if header.has_transparency_data else []
        notes += ["rotated"] if header.getexif().get(ORIENTATION, 1) in range(2, 9) else []
        notes += ["first_frame"] if getattr(header, "is_animated", False) else []
    except Exception:  # broken EXIF or a broken second frame says nothing about the pixels
        notes.append("broken_metadata")
    return tuple(notes)


def _why_unknown(data: bytes) -> str:
    try:
        load_image(data)
    except ImageError as error:  # names the formats that it recognises, such as HEIC
        return error.reason
    return "is not an image"
