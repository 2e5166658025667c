"""Each distinct text encoded once, with its length.

A text longer than the context is cut before its last tokens, the end token kept, and reported. With "chunk-average" its
tokens are dealt into chunks that fit instead, and its vector is the normalised mean of theirs. That is another score,
under another name: no CLIP was trained on such vectors.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_guidance.clip.tokenizer import one_at_a_time, warn_truncated

if TYPE_CHECKING:
    from clip_guidance.clip import DualEncoder

LongPrompts: TypeAlias = Literal["truncate", "chunk-average"]
TEXTS_PER_PASS, TOKEN_MULTIPLE = 4, 16  # of one pass on a CPU; lengths are rounded up to the multiple


@dataclass(frozen=True)
class EncodedText:
    """Hold the vector and length of a text.

    Attributes:
        embed: Unit vector (d,), on the model's device.
        tokens: Length in tokens, start and end included.
        truncated: Whether the text was cut to the context.
    """

    embed: Tensor
    tokens: int
    truncated: bool


class TextEncoder:
    """Encode texts and remember the latest ones; may be called from several threads.

    On a CPU every pass has one of a few shapes, filled up where there are fewer texts. A product of matrices rounds by
    its
    shape, so a text's vector then does not depend, in the last bits, on its neighbours: a resumed run and a run on
    several
    processes give the same numbers. A pass of few texts takes twice as long as a pass of one text, which mostly reads
    the
    weights. On a GPU all texts go together, which is much faster.

    Args:
        clip: A CLIP with a tokenizer.
        long_prompts: What to do with a text that does not fit the context.
        remembered: Number of texts whose vectors are kept.

    Raises:
        ValueError: The CLIP has no tokenizer, or ``long_prompts`` is something else.
    """

    def __init__(self, clip: DualEncoder, long_prompts: LongPrompts = "truncate", remembered: int = 65536) -> None:
        if clip.tokenizer is None:
            raise ValueError("this CLIP was made without a tokenizer: CLIP(config, tokenizer) or from_pretrained")
        if long_prompts not in get_args(LongPrompts):
            raise ValueError(f"expected {' or '.join(get_args(LongPrompts))} for long prompts, got {long_prompts!r}")
        if long_prompts == "chunk-average" and not getattr(clip.tokenizer, "tells_length", True):
            raise ValueError("chunk-average: this CLIP's tokenizer is a function, which does not say what it cuts")
        self.clip, self.tokenizer, self.long_prompts, self.remembered = clip, clip.tokenizer, long_prompts, remembered
        self._fills = clip.device.type == "cpu"
        self._known: OrderedDict[str, EncodedText] = OrderedDict()
        self._warned = False
        self._lock = threading.Lock()  # held while encoding: a text that two threads want is encoded once

    def __call__(self, texts: Sequence[str]) -> dict[str, EncodedText]:
        """Return the vectors of texts, by text.

        Warns:
            PromptTruncatedWarning: A text is cut; the warning comes for the first one.
        """
        with self._lock:
            return self._find(list(dict.fromkeys(texts)))

    def _find(self, distinct: list[str]) -> dict[str, EncodedText]:
        if new := [text for text in distinct if text not in self._known]:
            self._known.update(zip(new, self._encode(new), strict=True))
        for text in distinct:
            self._known.move_to_end(text)
        found = {text: self._known[text] for text in distinct}
        while len(self._known) > self.remembered:
            self._known.popitem(last=False)
        return found

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> list[EncodedText]:
        limit = self.tokenizer.model_max_length
        whole = one_at_a_time(self.tokenizer, texts, verbose=False).input_ids
        tokens = [len(ids) for ids in whole]
        if self.long_prompts == "truncate":
            chunks = [[ids] for ids in one_at_a_time(self.tokenizer, texts, truncation=True).input_ids]
            self._warn(texts, tokens)
        else:
            special = frozenset(self.tokenizer.all_special_ids)
            chunks = [_chunks(ids, limit, special) for ids in whole]
        embeds = self._embeds([chunk for group in chunks for chunk in group])
        groups = embeds.split([len(group) for group in chunks])
        cut = [self.long_prompts == "truncate" and count > limit for count in tokens]
        return [
            EncodedText(group[0] if len(group) == 1 else F.normalize(group.mean(0), dim=0), count, was_cut)
            for group, count, was_cut in zip(groups, tokens, cut, strict=True)
        ]

    def _embeds(self, rows: list[list[int]]) -> Tensor:
        """Encode token ids, each row at most the context long, to unit vectors (n, d)."""
        embeds = torch.empty(len(rows), self.clip.projection_dim, device=self.clip.device)
        by_length: dict[int, list[int]] = {}
        for place, ids in enumerate(rows):
            length = min(self.tokenizer.model_max_length, -(-len(ids) // TOKEN_MULTIPLE) * TOKEN_MULTIPLE)
            by_length.setdefault(length, []).append(place)
        together = TEXTS_PER_PASS if self._fills else 256
        for length, places in by_length.items():
            for start in range(0, len(places), together):
                part = places[start : start + together]
                filling = [part[-1]] * (together - len(part)) if self._fills else []
                filled = [rows[place] for place in part + filling]
                embeds[part] = self.clip.row_embeds(filled, length)[: len(part)]
        return embeds

    def _warn(self, texts: list[str], tokens: list[int]) -> None:
        """Warn of the first text that is cut: the rows tell of each."""
        long = [text for text, count in zip(texts, tokens, strict=True) if count > self.tokenizer.model_max_length]
        if long and not self._warned:
            self._warned = True
            warn_truncated(self.tokenizer, long[:1])


def _chunks(ids: list[int], limit: int, special: frozenset[int]) -> list[list[int]]:
    """Deal token ids into as few chunks as fit the context, each with the start and the end that the text has.

    The chunks are of equal length but for one token.
    """
    start, end = ids[: ids[0] in special], ids[len(ids) - (ids[-1] in special) :]
    inner = ids[len(start) : len(ids) - len(end)]
    count = max(1, -(-len(inner) // (limit - len(start) - len(end))))
    bounds = [len(inner) * i // count for i in range(count + 1)]
    return [[*start, *inner[a:b], *end] for a, b in pairwise(bounds)]
