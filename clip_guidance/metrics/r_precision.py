"""R-precision: does an image find the text it was made from among others?

Xu et al. 2018, "AttnGAN" (arXiv:1711.10485), section 4: an image's own text (R = 1) and 99 drawn texts that do not
belong to it are ranked by their cosine to the image; the score is the share of images whose own text is first.
Park et al. 2021, "Benchmark for Compositional Text-to-Image Synthesis", put CLIP in the place of AttnGAN's encoders.

Chance is 1 / (distractors + 1). The number depends on the distractors: the result holds how many there are, how many
texts they were drawn from, and the seed. A tie counts against the image's own text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clip_guidance.clip import DualEncoder, as_clip
from clip_guidance.images.load import as_list
from clip_guidance.metrics.clip_score import judge_record
from clip_guidance.metrics.retrieval import unique

CHUNK = 256  # images whose distractors are held at once


@dataclass(frozen=True)
class RPrecision:
    """Hold the R-precision of n images and what it depends on.

    Attributes:
        value: Share of images that find their text, in [0, 1].
        hits: Whether each image does, bool (n,).
        distractors: Number of texts that each image's own text was ranked against.
        pool: Number of distinct texts, the own one included, that they were drawn from.
        seed: Seed of the draw.
    """

    value: float
    hits: Tensor
    distractors: int
    pool: int
    seed: int

    def record(self, clip: DualEncoder) -> dict[str, Any]:
        """Return all that is needed to compute the same number again."""
        own = {"distractors": self.distractors, "pool": self.pool, "seed": self.seed, "ties": "count as misses"}
        return {"definition": "r-precision", **own, **judge_record(clip)}


def r_precision(
    image_embeds: Tensor, text_embeds: Tensor, targets: Tensor, distractors: int = 99, seed: int = 0
) -> RPrecision:
    """Measure R-precision from embeddings.

    Args:
        image_embeds: Unit vectors (n, d).
        text_embeds: Unit vectors (m, d) of *distinct* texts, such as :func:`~clip_guidance.metrics.retrieval.unique`
            lists.
        targets: The number of each image's own text, int64 (n,).
        distractors: Number of other texts drawn for each image, without repetition; the published number is 99.
        seed: Seed of the draw; an image's distractors depend on the seed and its position alone.

    Raises:
        ValueError: There is no image, there are too few texts, a target is out of range, or the shapes do not fit.
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
    """Put the target first, then some of the ``count - 1`` others, each equally likely."""
    drawn = random.Random(seed).sample(range(count - 1), distractors)
    return [target, *(other + (other >= target) for other in drawn)]


def clip_r_precision(
    clip: DualEncoder,
    images: Any,
    prompts: Sequence[str],
    others: Sequence[str] = (),
    distractors: int = 99,
    seed: int = 0,
    batch_size: int = 64,
) -> RPrecision:
    """Measure the R-precision of images by a CLIP (Park et al. 2021).

    Args:
        clip: The judge; not the CLIP that guided the images.
        images: Images, n of them, as for ``CLIP.encode_image``.
        prompts: Texts, n of them; the distractors of each image are drawn from those that differ from its own.
        others: Further texts to draw from, where the prompts are few.
        distractors: Number of texts that each image's own text is ranked against; the published number is 99.
        seed: Seed of the draw.
        batch_size: Images encoded at once; it changes speed and memory, not the result.

    Returns:
        The share of images that find their text, whether each does, and what the number depends on.

    Raises:
        ValueError: The number of prompts is not n, or there are too few distinct texts.
        ImageError: An image cannot be read.

    Example:
        >>> import clip_guidance as cg
        >>> from PIL import Image
        >>> judge = cg.CLIP.from_pretrained("emoji-judge")
        >>> images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
        >>> found = cg.clip_r_precision(judge, images, ["a red square", "a blue square"], distractors=1)
        >>> found.hits.shape, found.pool
        (torch.Size([2]), 2)
    """
    images = as_list(images)
    if isinstance(prompts, str) or len(prompts) != len(images):
        found = "one text" if isinstance(prompts, str) else f"{len(prompts)} texts"
        raise ValueError(f"expected a text for each of {len(images)} images, got {found}")
    texts, numbers = unique([*prompts, *others])
    clip = as_clip(clip)
    image_embeds = clip.encode_image(images, batch_size=batch_size)
    return r_precision(image_embeds, clip.encode_text(texts), numbers[: len(images)], distractors, seed)
