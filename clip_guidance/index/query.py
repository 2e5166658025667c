"""Queries: weighted sums of texts and images, ``2 * red apple + ./orchard.png - "a worm"``.

    query = ["+" | "-"], term, {("+" | "-"), term}
    term  = [weight, "*"], (text | path)

A sign stands between spaces, so that ``black-and-white t-shirt`` is one text; in double quotes it is part of the text.
A term is an image where it is the path of one: a file that exists and has an image's extension, or whatever is
written with a folder in front (``./b``). The query's vector is that of Σ wᵢ vᵢ, vᵢ the terms' unit vectors.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F

from clip_guidance.images.load import EXTENSIONS, ImageSource

if TYPE_CHECKING:
    from clip_guidance.clip import DualEncoder

_SIGN = re.compile(r'(?:(?<=[\s*])|^)"[^"]*"(?=\s|$)|(?:(?<=\s)|^)[+-](?=\s|$)')  # quotes are passed over
_WEIGHT = re.compile(r"(\d+\.?\d*|\.\d+)\s*\*\s*")
_FOLDER = ("./", "../", "/", "~/", ".\\", "..\\")


@dataclass(frozen=True)
class Term:
    """Describe a summand of a query.

    Attributes:
        source: A text (``str``), or an image: a ``Path`` or anything else that ``CLIP.encode_image`` takes.
        weight: Finite weight; negative for what is to be avoided.

    Raises:
        ValueError: The weight is not finite.

    Example:
        >>> from clip_guidance.index import Term
        >>> Term("a worm", -0.5)
        Term(source='a worm', weight=-0.5)
    """

    source: Any
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"query: expected a finite weight, got {self.weight}")


Query: TypeAlias = str | ImageSource | Term | Iterable[Term]


def parse_query(query: str) -> list[Term]:
    """Read a query into terms; each ``Term.source`` is a text or an existing ``Path``.

    Raises:
        ValueError: A term is missing, a quote is open, or an image does not exist; the message says where.

    Example:
        >>> parse_query('2 * red apple - "a worm"')
        [Term(source='red apple', weight=2.0), Term(source='a worm', weight=-1.0)]
    """
    signs = [match for match in _SIGN.finditer(query) if match[0] in "+-"]
    starts = [0, *(sign.end() for sign in signs)]
    ends = [*(sign.start() for sign in signs), len(query)]
    factors = [1.0, *(-1.0 if sign[0] == "-" else 1.0 for sign in signs)]
    if signs and not query[: ends[0]].strip():  # a sign in front of the first term
        starts, ends, factors = starts[1:], ends[1:], factors[1:]
    return [_term(query, *part) for part in zip(starts, ends, factors, strict=True)]


def query_embeds(clip: DualEncoder, query: Query) -> torch.Tensor:
    """Encode a query to its unit vector (d,).

    Args:
        clip: The CLIP that encodes the terms.
        query: A text as described above; or an image (``Path``, PIL and so on), or terms.

    Raises:
        ValueError: The query cannot be read, has no term, or its terms cancel out.
        ImageError: An image cannot be read.
    """
    terms = _terms(query)
    texts = [term for term in terms if isinstance(term.source, str)]
    images = [term for term in terms if not isinstance(term.source, str)]
    total = torch.zeros(clip.projection_dim)
    for members, encode in ((texts, clip.encode_text), (images, clip.encode_image)):
        if members:
            embeds = encode([term.source for term in members]).float().cpu()
            total += torch.tensor([term.weight for term in members], dtype=torch.float32) @ embeds
    if not total.norm() > 1e-4:  # of sums of unit vectors; written so that NaN fails
        raise ValueError(f"query: its terms cancel out: {query!r}")
    return F.normalize(total, dim=0)


def _terms(query: Query) -> list[Term]:
    if isinstance(query, str):
        return parse_query(query)
    if isinstance(query, Term):
        return [query]
    if isinstance(query, (list, tuple)):
        if not query or not all(isinstance(term, Term) for term in query):
            raise ValueError(f"query: expected a text, an image, or a list of Term, got {query!r}")
        return list(query)
    return [Term(query)]


def _term(query: str, start: int, end: int, factor: float) -> Term:
    text = query[start:end]
    start += len(text) - len(text.lstrip())
    text = text.strip()
    if not text:
        raise ValueError(f"query: expected a text or an image at character {start + 1}: {query}")
    weight, text = _weight(text)
    if text.startswith('"'):
        if text.count('"') == 1:
            raise ValueError(f"query: a quote is opened and not closed at character {start + 1}: {query}")
        if text.endswith('"') and text.count('"') == 2:
            inner, text = _weight(text[1:-1].strip())  # the weight may stand inside too: "2 * red apple"
            weight *= inner
    if not text:
        raise ValueError(f"query: expected a text or an image after the weight at character {start + 1}: {query}")
    return Term(_path(text, f"at character {start + 1}: {query}") or text, factor * weight)


def _weight(text: str) -> tuple[float, str]:
    match = _WEIGHT.match(text)
    return (float(match[1]), text[match.end() :]) if match else (1.0, text)


def _path(text: str, where: str) -> Path | None:
    """Return the path of the image that a term names; None for a text."""
    if text.startswith(("http://", "https://")):
        raise ValueError(f"query: {text} is an address; download the image and give its path, {where}")
    path = Path(text).expanduser()
    alike = text.startswith(_FOLDER) or (path.suffix.lower() in EXTENSIONS and not re.search(r"\s", text))
    if not alike and not (path.suffix.lower() in EXTENSIONS and os.path.isfile(path)):
        return None
    if not os.path.isfile(path):
        raise ValueError(f"query: there is no file {text}, {where}")
    return path
