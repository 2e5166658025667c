"""Metadata as it is given: JSON that is put over what an image has (merge patch, RFC 7396: null removes a key)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

Metadata: TypeAlias = Mapping[str, Any] | Callable[[Path], Mapping[str, Any]] | None


def patch(metadata: Mapping[str, Any]) -> str:
    """Encode metadata as JSON.

    Raises:
        ValueError: The metadata is no JSON.
    """
    try:
        return json.dumps(dict(metadata), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata: expected JSON (texts, finite numbers, lists and so on): {error}") from None


def patches(metadata: Metadata) -> Callable[[Path], str]:
    """Return the patch of each path: the same for all, or what a function says."""
    if callable(metadata):
        return lambda path: patch(metadata(path))
    same = patch(metadata or {})
    return lambda _: same
