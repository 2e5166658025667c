"""Labels as people type them: separated by commas or line breaks, in quotes where a label holds one of them."""

from __future__ import annotations

import re

# Spaces, a label in quotes or none of its first characters a quote, spaces, and what ends the label.
_LABEL = re.compile(r'[^\S\n]*(?:"((?:[^"]|"")*)"|([^\s",][^,\n]*?|))[^\S\n]*(?:[,\n]|\Z)')


def parse_labels(text: str) -> list[str]:
    """Split a text into labels.

    Args:
        text: Labels between commas or line breaks. A label in double quotes may hold both; a quote in it is doubled.
            Spaces around labels do not count, and nothing between two commas is no label.

    Returns:
        The labels in their order, which may be none, or one label twice.

    Raises:
        ValueError: A quote is never closed, or something follows the closing one.

    Example:
        >>> from clip_guidance.zero_shot.labels import parse_labels
        >>> parse_labels('cat, "guinea pig, long-haired", dog')
        ['cat', 'guinea pig, long-haired', 'dog']
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    labels, place = [], 0
    while place < len(text):
        found = _LABEL.match(text, place)
        if found is None:
            raise ValueError(f"labels: expected a comma after a closing quote, at {text[place:].strip()[:60]!r}")
        quoted, plain = found.groups()
        labels.append(plain if quoted is None else quoted.replace('""', '"'))
        place = found.end()
    return [label.strip() for label in labels if label.strip()]
