"""Metadata as it is given: JSON that is put over what an image has (merge patch, RFC 7396: null removes a key)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from clip_guidance._files import shorten

Metadata: TypeAlias = Mapping[str, Any] | Callable[[Path], Mapping[str, Any]] | None

_DEPTH = 100  # Python's own reader of JSON gives up at about a thousand, less what called it


def patch(metadata: Mapping[str, Any]) -> str:
    """Encode metadata as JSON.

    Raises:
        ValueError: The metadata is no JSON.
    """
    try:
        # SQLite compares keys as they are written, so letters are not escaped; what is no valid text fails here.
        text = json.dumps(dict(metadata), allow_nan=False, ensure_ascii=False).encode().decode()
    except (TypeError, ValueError, RecursionError) as error:
        reason = shorten(str(error), 150)
        raise ValueError(f"metadata: expected JSON (texts, finite numbers, lists and so on): {reason}") from None
    level: list[Any] = [metadata]
    for _ in range(_DEPTH):
        level = [part for value in level for part in _parts(value)]
    if level:
        raise ValueError(f"metadata: expected at most {_DEPTH} lists and objects within each other")
    return text


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()


def patches(metadata: Metadata) -> Callable[[Path], str]:
    """Return the patch of each path: the same for all, or what a function says."""
    if callable(metadata):
        return lambda path: patch(metadata(path))
    same = patch(metadata or {})
    return lambda _: same
