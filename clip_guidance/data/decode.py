"""A record becomes a pair, or is bad for one reason; the same whatever it was read from."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from PIL import Image, UnidentifiedImageError

from clip_guidance.data.policy import Outcome, Policy
from clip_guidance.data.records import BadRow, Pair, Record
from clip_guidance.images.load import ImageError, load_image

ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
MODES = {"CMYK": "cmyk", "P": "palette", "PA": "palette", "F": "16_bit", "L": "grey", "LA": "grey", "1": "grey"}
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)  # the second where warnings are errors


def decode(
    record: Record,
    policy: Policy,
    transform: Callable[[Image.Image], Any] | None = None,
    exclude: str | None = None,
) -> Outcome:
    """What becomes of a record; captions are looked at first because they cost less.

    Args:
        record: what was read.
        policy: what is refused.
        transform: given the image (RGB), makes ``Pair.image``; its errors are the caller's.
        exclude: records of which a caption contains this are left out, and their images are not read.
    """
    size = None
    try:
        if record.problem is not None:
            raise record.problem
        captions, notes = clean_captions(record.captions() if callable(record.captions) else record.captions)
        if exclude and any(exclude in caption for caption in captions):
            return Outcome(record)
        data = image_bytes(record, policy)
        header = open_header(data, policy)
        size = header.size
        notes += conversions(header)
        image = load_image(data, record.key)  # opened anew: looking for a second frame may leave the header elsewhere
    except BadRow as bad:
        return Outcome(record, bad=bad, size=size)
    except ImageError as error:
        return Outcome(record, bad=BadRow("corrupt", error.reason), size=size)
    pair = Pair(image if transform is None else transform(image), captions, record.key, record.origin)
    return Outcome(record, pair, notes=notes, size=size)


def clean_captions(values: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The captions worth keeping, each once, and a note where some are not.

    Raises:
        BadRow: there is none.
    """
    texts = [value.strip() for value in values if isinstance(value, str) and _is_unicode(value)]
    kept = tuple(dict.fromkeys(text for text in texts if text))
    if kept:
        return kept, ("caption_dropped",) * (len(kept) < len(values))
    if wrong := [value for value in values if value is not None and not (isinstance(value, str) and not value.strip())]:
        found = "text that is not UTF-8" if isinstance(wrong[0], str) else f"{type(wrong[0]).__name__} {wrong[0]!r:.60}"
        raise BadRow("caption_not_text", f"expected a text, got {found}")
    raise BadRow("no_caption", "the caption is empty" if values else "there is no caption")


def image_bytes(record: Record, policy: Policy) -> bytes:
    """The encoded image.

    Raises:
        BadRow: it is not there, may not be read, is empty or above the limit.
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
    """The image with nothing decoded yet.

    Raises:
        BadRow: it is not an image, or its size is refused.
    """
    try:
        header = Image.open(io.BytesIO(data))
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
    """What has to be done to the image to make it upright, opaque, 8-bit RGB."""
    notes = ["16_bit"] if header.mode.startswith("I") else []
    notes += [MODES[header.mode]] if header.mode in MODES else []
    try:
        notes += ["alpha"] if header.has_transparency_data else []
        notes += ["rotated"] if header.getexif().get(ORIENTATION, 1) in range(2, 9) else []
        notes += ["first_frame"] if getattr(header, "is_animated", False) else []
    except Exception:  # broken EXIF or a broken second frame: says nothing about the pixels
        notes.append("broken_metadata")
    return tuple(notes)


def _is_unicode(text: str) -> bool:
    """False where bytes that are not UTF-8 were carried through (PEP 383)."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _why_unknown(data: bytes) -> str:
    try:
        load_image(data)
    except ImageError as error:  # names formats that we know by sight, such as HEIC
        return error.reason
    return "is not an image"
