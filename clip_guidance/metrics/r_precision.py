"""R-precision: does an image find the text it was made from among others?

Xu et al. 2018, "AttnGAN" (arXiv:1711.10485), section 4: an image's own text (R = 1) and 99 drawn texts that do not
belong to it are ranked by their cosine to the image; the score is the share of images whose own text is first.
Park et al. 2021, "Benchmark for Compositional Text-to-Image Synthesis", put CLIP in the place of AttnGAN's encoders.

Chance is 1 / (distractors + 1). The number depends on the distractors: their number, where they come from and the seed
stand in the result. A tie counts against the image's own text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clip_guidance.images.load import as_list
from clip_guidance.metrics.clip_score import judge_record
from clip_guidance.metrics.retrieval import unique

if TYPE_CHECKING:
    from clip_guidance.clip import CLIP

CHUNK = 256  # images whose distractors are held at once


@dataclass(frozen=True)
class RPrecision:
    """R-precision of n images.

    Attributes:
        value: share in [0, 1] of images that find their text.
        hits: bool (n,), whether each does.
        distractors: texts that each image's own one was ranked against.
        pool: distinct texts, the own one included, that they were drawn from.
        seed: of the draw.
    """

    value: float
    hits: Tensor
    distractors: int
    pool: int
    seed: int

    def record(self, clip: CLIP) -> dict[str, Any]:
        """All that is needed to compute the same number again."""
        own = {"distractors": self.distractors, "pool": self.pool, "seed": self.seed, "ties": "count as misses"}
        return {"definition": "r-precision", **own, **judge_record(clip)}


def r_precision(
    image_embeds: Tensor, text_embeds: Tensor, targets: Tensor, distractors: int = 99, seed: int = 0
) -> RPrecision:
    """R-precision from embeddings.

    Args:
        image_embeds: (n, d).
        text_embeds: (m, d), one a *distinct* text, such as :func:`~clip_guidance.metrics.retrieval.unique` finds.
        targets: int64 (n,), the number of each image's own text.
        distractors: other texts drawn for each image, without repetition; the published number is 99.
        seed: of the draw; an image's distractors depend on the seed and its position alone.

    Raises:
        ValueError: there is no image, there are too few texts, a target is none of them, or the shapes do not fit.
    """
    n, m = len(image_embeds), len(text_embeds)
    if not n or targets.shape != (n,) or image_embeds.shape[1:] != text_embeds.shape[1:]:
        raise ValueError(
            "expected image_embeds (n, d), text_embeds (m, d) and targets (n,), got "
            f"{tuple(image_embeds.shape)}, {tuple(text_embeds.shape)} and {tuple(targets.shape)}"
        )
    if not 0 < distractors < m:
        raise ValueError(f"expected between 1 and {m - 1} distractors of {m} distinct texts, got {distractors}")
    if not 0 <= int(targets.min()) <= int(targets.max()) < m:
        raise ValueError(f"expected targets from 0 to {m - 1}, got {int(targets.min())} to {int(targets.max())}")
    parts = []
    for start in range(0, n, CHUNK):
        rows = range(start, min(start + CHUNK, n))
        candidates = torch.tensor([_candidates(int(targets[row]), m, distractors, f"{seed}:{row}") for row in rows])
        cosines = torch.einsum("nd,nkd->nk", image_embeds[rows.start : rows.stop], text_embeds[candidates])
        parts.append((cosines[:, 1:] < cosines[:, :1]).all(1))  # nan is no hit
    hits = torch.cat(parts).cpu()
    return RPrecision(hits.double().mean().item(), hits, distractors, m, seed)


def _candidates(target: int, count: int, distractors: int, seed: str) -> list[int]:
    """The target first, then some of the ``count - 1`` others, each equally likely."""
    drawn = random.Random(seed).sample(range(count - 1), distractors)
    return [target, *(other + (other >= target) for other in drawn)]


def clip_r_precision(
    clip: CLIP,
    images: Any,
    prompts: Sequence[str],
    others: Sequence[str] = (),
    distractors: int = 99,
    seed: int = 0,
    batch_size: int = 64,
) -> RPrecision:
    """R-precision of images by a CLIP (Park et al. 2021).

    Args:
        clip: the judge; not the one that guided the images.
        images: n images, as for ``CLIP.encode_image``.
        prompts: n texts; the distractors of each image are drawn from those that differ from its own.
        others: further texts to draw from, where the prompts are few.
        distractors: as for :func:`r_precision`.
        seed: as for :func:`r_precision`.
        batch_size: images encoded at once.

    Raises:
        ValueError: the number of prompts is not n, or there are too few distinct texts.
        ImageError: an image cannot be read.
    """
    images = as_list(images)
    if isinstance(prompts, str) or len(prompts) != len(images):
        found = "one text" if isinstance(prompts, str) else f"{len(prompts)} texts"
        raise ValueError(f"expected a text for each of {len(images)} images, got {found}")
    texts, numbers = unique([*prompts, *others])
    image_embeds = clip.encode_image(images, batch_size=batch_size)
    return r_precision(image_embeds, clip.encode_text(texts), numbers[: len(images)], distractors, seed)
