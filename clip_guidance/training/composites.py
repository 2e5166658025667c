"""Two images in one, beside or above each other, with a caption that names both.

A CLIP that has met one thing per image alone reads "a cat and a rocket" as either of them. Composites of single images
teach it to read both, and who is above whom, which a bag of words cannot tell (Yuksekgonul et al. 2023,
arXiv:2210.01936).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_guidance.data.dataset import Row

BESIDE = ("{a} and {b}", "a {a} and a {b}", "a {style} picture of a {a} and a {b}", "a {a} beside a {b}")
PARTNERS = 3  # of each style in a step
ABOVE = ("{a} and {b}", "a {style} picture of a {a} and a {b}", "a {a} above a {b}", "a {b} below a {a}")


@dataclass(frozen=True)
class Composite:
    """Describe a composite of an image and its partner.

    Attributes:
        partner: Index of the second image: the right one, or the lower one.
        stacked: Whether one is above the other; else they are side by side.
        caption: A text that names both.
        name: Both names in the order of the alphabet; composites of the same two concepts share it.
    """

    partner: int
    stacked: bool
    caption: str
    name: str


class Composites:
    """Draw for each image of a step whether it becomes half of a composite, and with which image of its style.

    Composites of a step share their parts: all images of a concept become halves or none does, and each style has a few
    partners only. Among pairs drawn alone hardly two have a part in common, and one part then is enough to find the
    right caption in a batch, so that the other one is never learnt.

    Args:
        rows: One per image of the data.
        share: Of the images that become composites, in [0, 1].
        partners: Images of each style that are partners in a step, at least 1.

    Raises:
        ValueError: ``share`` is out of range.

    Example:
        >>> rows = [Row("cat", "noto", ()), Row("rocket", "noto", ()), Row("fish", "twemoji", ())]
        >>> drawn = Composites(rows, share=1.0).draw(0, "step 0", 0)
        >>> drawn.partner, drawn.name
        (1, 'cat + rocket')
        >>> Composites(rows, share=1.0).draw(2, "step 0", 1) is None  # nothing else is in its style
        True
    """

    def __init__(self, rows: Sequence[Row], share: float, partners: int = PARTNERS):
        if not 0 <= share <= 1:
            raise ValueError(f"composite_share: expected a share in [0, 1], got {share}")
        self.rows, self.share, self.partners = rows, share, partners
        self.by_style: dict[str, list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            self.by_style[row.style].append(index)

    def draw(self, index: int, seed: str, place: int) -> Composite | None:
        """Draw a composite whose first image is that at ``index``; None for an image that stays alone.

        Args:
            index: Of the first image.
            seed: Of the step.
            place: Of the image in the global batch, which draws the partner, the arrangement and the caption.
        """
        row = self.rows[index]
        if random.Random(f"{seed}-{row.name}-composite").random() >= self.share:
            return None
        known = self.by_style[row.style]
        among = random.Random(f"{seed}-{row.style}-partners").sample(known, min(self.partners, len(known)))
        rng = random.Random(f"{seed}-{place}-composite")
        others = [partner for partner in among if self.rows[partner].name != row.name]
        if not others:
            return None
        partner, stacked = rng.choice(others), rng.random() < 0.5
        other = self.rows[partner].name
        text = rng.choice(ABOVE if stacked else BESIDE).format(a=row.name, b=other, style=row.style)
        return Composite(partner, stacked, " ".join(text.split()), " + ".join(sorted((row.name, other))))


def joined(first: Tensor, second: Tensor, stacked: bool) -> Tensor:
    """Put two images at half their size on white, side by side or the first above the second.

    Args:
        first: (3, H, W) in [0, 1], H and W even.
        second: Of the same shape.
        stacked: Whether the first is above the second.

    Returns:
        (3, H, W) in [0, 1].

    Example:
        >>> black = torch.zeros(3, 4, 4)
        >>> joined(black, black, stacked=True)[0]
        tensor([[1., 0., 0., 1.],
                [1., 0., 0., 1.],
                [1., 0., 0., 1.],
                [1., 0., 0., 1.]])
    """
    halves = F.avg_pool2d(torch.stack([first, second]), 2)
    height, width = halves.shape[-2:]
    canvas = torch.ones_like(first)
    for place, half in enumerate(halves):
        top, left = (place * height, width // 2) if stacked else (height // 2, place * width)
        canvas[:, top : top + height, left : left + width] = half
    return canvas
