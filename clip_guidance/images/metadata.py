"""The record that an image carries in its PNG text chunk."""

from __future__ import annotations

import json
import os
from typing import Any

METADATA_KEY = "clip_guidance"


def read_record(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The record stored in an image; None if it has none or is no image."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            record = json.loads(image.info[METADATA_KEY])
    except Exception:  # missing, broken, another format, another program's text
        return None
    return record if isinstance(record, dict) and isinstance(record.get("settings"), dict) else None
