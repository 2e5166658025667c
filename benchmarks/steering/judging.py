"""What a judge that never guided says of the images, and how far they are from real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from drawing import Cell
from prompt_sets import Item
from torch import Tensor

import clip_guidance as cg
from clip_guidance.data.dataset import CaptionedImages, Row
from clip_guidance.metrics.features import image_features
from clip_guidance.metrics.kid import kernel_distance_interval
from clip_guidance.metrics.precision_recall import precision_recall
from clip_guidance.metrics.statistics import Interval, bounds, resample_counts

COPY_RADIUS = 0.05  # root mean square of pixels in [0, 1]: what people take for the same image


@dataclass(frozen=True)
class Judgement:
    """What is said of one cell.

    Attributes:
        top1: share of the images whose target the judge prefers to all others; a tie is no preference.
        rank: mean rank of the target, 1 is best.
        kernel_distance: of the judge's features to those of the reference images.
        precision, recall: against as many reference images.
        nearest: median distance to the nearest training image, root mean square over pixels in [0, 1].
        copied: share nearer than :data:`COPY_RADIUS`.
        guide: mean cosine of the guide, which is no evidence.
        right: (n,) whether each image's target was preferred, for paired comparisons.
        named: share of the images that the judge calls by the right name of all that there are, told the style; None
            of prompts that no real image has.
        named_right: (n,), as ``right``.
    """

    count: int
    top1: Interval
    rank: float
    kernel_distance: Interval
    precision: float
    recall: float
    nearest: float
    copied: float
    guide: float | None
    right: Tensor
    named: Interval | None = None
    named_right: Tensor | None = None


class Naming:
    """What a CLIP calls images, of all the names that there are.

    Args:
        clip: the CLIP.
        names: every name.
    """

    def __init__(self, clip: cg.CLIP, names: Sequence[str]):
        self.clip, self.names = clip, list(names)
        self.embeds_of: dict[str, Tensor] = {}  # of all names, by style

    def __call__(self, images: Tensor, rows: Sequence[Row]) -> Tensor:
        """float64 (n,), 1 where the row's name is preferred to all others in the row's style."""
        right = []
        for embed, row in zip(self.clip.encode_image(images), rows, strict=True):
            if row.style not in self.embeds_of:
                texts = [Row(name, row.style, ()).prompt for name in self.names]
                self.embeds_of[row.style] = self.clip.encode_text(texts, batch_size=1024)
            scores = self.embeds_of[row.style] @ embed
            right.append(float((scores >= scores[self.names.index(row.name)]).sum() == 1))
        return torch.tensor(right, dtype=torch.float64)


class Judge:
    """A CLIP that never guides, the images of training, and those that were held out.

    Args:
        clip: the judge.
        training: every image that the generator was trained on.
        held_out: real images that it was not.
        references: number of training images that the kernel distance, precision and recall compare with.
    """

    def __init__(self, clip: cg.CLIP, training: CaptionedImages, held_out: CaptionedImages, references: int = 2000):
        self.clip, self.training, self.held_out = clip, training, held_out
        chosen = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))[:references]
        self.reference = image_features(clip, training.images[chosen])
        self.names = sorted({row.name for row in (*training.rows, *held_out.rows)})
        self.naming = Naming(clip, self.names)

    def __call__(self, cell: Cell, items: Sequence[Item]) -> Judgement:
        """Judges images drawn for ``items``, in the same order."""
        ranks = self.ranks(cell.images, items)
        right = (ranks == 1).double()
        features = image_features(self.clip, cell.images)
        likeness = precision_recall(features, self.reference[: len(features)])
        distances = nearest(cell.images, self.training.images).distance
        named = self.named(cell.images, items)
        return Judgement(
            count=len(items),
            top1=mean_interval(right),
            rank=ranks.double().mean().item(),
            kernel_distance=kernel_distance_interval(features, self.reference),
            precision=likeness.precision,
            recall=likeness.recall,
            nearest=distances.median().item(),
            copied=(distances < COPY_RADIUS).double().mean().item(),
            guide=cell.guide.mean().item() if len(cell.guide) else None,
            right=right,
            named=None if named is None else mean_interval(named),
            named_right=named,
        )

    def ranks(self, images: Tensor, items: Sequence[Item]) -> Tensor:
        """int64 (n,), the rank of each target among its candidates."""
        image_embeds = self.clip.encode_image(images)
        texts = sorted({text for item in items for text in (item.target, *item.others)})
        numbers = {text: i for i, text in enumerate(texts)}
        text_embeds = self.clip.encode_text(texts, batch_size=1024)
        ranks = []
        for embed, item in zip(image_embeds, items, strict=True):
            scores = text_embeds[[numbers[item.target], *(numbers[text] for text in item.others)]] @ embed
            ranks.append(1 + int((~(scores[1:] < scores[0])).sum()))
        return torch.tensor(ranks)

    def named(self, images: Tensor, items: Sequence[Item]) -> Tensor | None:
        """Return (n,): 1 where the judge prefers the target's name to all others; None without names."""
        if any(item.row is None for item in items):
            return None
        return self.naming(images, [self.held_out.rows[item.row] for item in items])  # type: ignore[index]

    def real(self, items: Sequence[Item]) -> tuple[Cell, list[Item]]:
        """Return the real images of the items that have one: what the judge can do at best."""
        known = [item for item in items if item.row is not None]
        images = self.held_out.images[[item.row for item in known]]
        return Cell(images, torch.zeros(0), {}), known


def mean_interval(values: Tensor, seed: int = 0) -> Interval:
    """Average (n,), with a 95 % bootstrap interval from the same resamples for every method."""
    means = resample_counts(len(values), 2000, seed) @ values.double() / len(values)
    return Interval(values.double().mean().item(), *bounds(means))


@dataclass(frozen=True)
class Nearest:
    """The nearest of known images to each of some.

    Attributes:
        distance: (n,), root mean square difference of pixels in [0, 1].
        number: int64 (n,), which of the known ones it is.
    """

    distance: Tensor
    number: Tensor


def nearest(images: Tensor, training: Tensor, chunk: int = 256) -> Nearest:
    """Find the nearest of ``training`` to each image."""
    known = training.flatten(1).float() / 255
    found = [torch.cdist(part.flatten(1).float() / 255, known).min(1) for part in images.split(chunk)]
    distances = torch.cat([each.values for each in found])
    return Nearest(distances / known.shape[1] ** 0.5, torch.cat([each.indices for each in found]))
