"""The two predictions that classifier-free guidance combines, found again in what a pipeline made of them.

With the predictions u without the prompt and c with it, a pipeline hands ``scheduler.step``

    m = ±f·(u + s·(c − u)),    f = 1 + φ·(std(c) / std(u + s·(c − u)) − 1),

for a scale s that it knows (Ho & Salimans 2022, arXiv:2207.12598), a sign that some transformers turn round, and
``guidance_rescale`` φ, mostly 0 (Lin et al. 2023, arXiv:2305.08891, equations 15 and 16); or, as Qwen-Image does, it
gives each vector along the last axis the length that it has in c. The denoiser gives u and c, in either order. Then m
tells the rest: for f = 1 it lies on the line through ±u and ±c, at s > 1/2 on the side of c; otherwise on the ray from
0 through a point of that line. All of this is found for each image on its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clip_guidance._tensors import at_least_float32, per_sample
from clip_guidance.guidance.per_sample import are_finite

_SAME_SCALE = 1e-3  # relative difference up to which two scales are the same: bfloat16 blurs the pipeline's own


@dataclass(frozen=True)
class Combination:
    """Hold what a pipeline made of its two predictions.

    Attributes:
        output: The model output m that reaches ``scheduler.step``, (B, ...).
        uncond: The prediction u without the prompt, or with the negative one, (B, ...).
        cond: The prediction c with the prompt, (B, ...).
        scale: The scale s of each image, (B,); nan of an image whose predictions are not finite.
        sign: 1 or -1 of each image, (B,).
        rescale: φ of each image, (B,).
        keeps_norm: Whether the vectors along the last axis of each image get the lengths that they have in c, (B,).
    """

    output: Tensor
    uncond: Tensor
    cond: Tensor
    scale: Tensor
    sign: Tensor
    rescale: Tensor
    keeps_norm: Tensor

    def at(self, scale: float) -> Tensor:
        """Compute what the pipeline would have made with another scale, (B, ...); with its own, it is ``output``."""
        made = self.uncond + scale * (self.cond - self.uncond)
        factor = self.sign
        if self.rescale.any():
            factor = factor * (1 + self.rescale * (_std(self.cond) / _std(made) - 1))
        made = per_sample(factor, made).to(made.dtype) * made
        if self.keeps_norm.any():
            made = torch.where(per_sample(self.keeps_norm, made), _with_norm_of(self.cond, made), made)
        return torch.where(per_sample(self.has(scale), made), self.output, made.to(self.output.dtype))

    def has(self, scale: float) -> Tensor:
        """Return whether ``scale`` is the pipeline's own, but for rounding, (B,)."""
        return (self.scale - scale).abs() <= _SAME_SCALE * max(1.0, abs(scale))


def find_combination(output: Tensor, predictions: tuple[Tensor, Tensor]) -> Combination | None:
    """Find what classifier-free guidance made of two predictions.

    Args:
        output: The model output m, (B, ...).
        predictions: The denoiser's two predictions, in either order.

    Returns:
        The combination; None if m is none of both for one of the images that are finite.
    """
    first, second = predictions
    m, a, b = (at_least_float32(x.detach()).flatten(1) for x in (output, first, second))
    slack = max(2 * max(torch.finfo(x.dtype).eps for x in (output, first)), 1e-5)
    rules = [_on_line(m, a, b, slack), _on_line(-m, a, b, slack), _on_ray(m, a, b, slack)]
    rules.append(_with_norm(m.view_as(output), a.view_as(output), b.view_as(output), slack))
    found = torch.stack(rules)  # (4, B, 3)
    fits = found[..., 0].bool()
    if not (fits.any(0) | ~are_finite(torch.stack([m, a, b], 1))).all():
        return None
    rule = fits.to(torch.uint8).argmax(0)  # the first that fits
    _, place, rescale = found[rule, torch.arange(len(m))].unbind(1)
    swapped = per_sample(place < 0.5, output)
    uncond, cond = torch.where(swapped, second, first), torch.where(swapped, first, second)
    scale = torch.where(place < 0.5, 1 - place, place)
    return Combination(output, uncond, cond, scale, torch.where(rule == 1, -1.0, 1.0), rescale, rule == 3)


def _on_line(m: Tensor, a: Tensor, b: Tensor, slack: float) -> Tensor:
    """Return for each row whether m = a + t·(b − a), that t, and φ = 0, (B, 3)."""
    way = b - a
    place = (_dot(m - a, way) / _dot(way, way)).nan_to_num(0.0)  # 0 where both predictions are the same
    fits = (m - a - place[:, None] * way).norm(dim=1) <= slack * (m.norm(dim=1) + place.abs() * way.norm(dim=1))
    return torch.stack([fits.to(m), place.where(_all_finite(m), torch.nan), torch.zeros_like(place)], 1)


def _on_ray(m: Tensor, a: Tensor, b: Tensor, slack: float) -> Tensor:
    """Return for each row whether m = f·(a + t·(b − a)) with an f of the formula above, that t, and φ, (B, 3)."""
    way = b - a
    across_a, across_way = (x - m * (_dot(x, m) / _dot(m, m))[:, None] for x in (a, way))
    place = -_dot(across_a, across_way) / _dot(across_way, across_way)
    made = a + place[:, None] * way
    factor = _dot(m, made) / _dot(made, made)
    fits = (m - factor[:, None] * made).norm(dim=1) <= slack * m.norm(dim=1)
    cond = torch.where((place < 0.5)[:, None], a, b)
    rescale = (factor - 1) / (_std(cond) / _std(made) - 1)
    fits &= (rescale > 0) & (rescale < 1.01)
    return torch.stack([fits.to(m), place, rescale.clamp(max=1.0)], 1)


def _with_norm(m: Tensor, a: Tensor, b: Tensor, slack: float) -> Tensor:
    """Return for each image whether m is a + t·(b − a) with the norms of c along the last axis, that t, and 0, (B, 3).

    Each vector of m is on a ray of its own, and all share t.
    """
    way = b - a
    along = m / m.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(m.dtype).tiny)
    across_a, across_way = (x - along * (x * along).sum(-1, keepdim=True) for x in (a, way))
    place = -_dot(across_a.flatten(1), across_way.flatten(1)) / _dot(across_way.flatten(1), across_way.flatten(1))
    cond = torch.where(per_sample(place < 0.5, m), a, b)
    made = _with_norm_of(cond, a + per_sample(place, m) * way)
    fits = (m - made).flatten(1).norm(dim=1) <= slack * m.flatten(1).norm(dim=1)
    return torch.stack([fits.to(m), place, torch.zeros_like(place)], 1)


def _with_norm_of(cond: Tensor, made: Tensor) -> Tensor:
    return made * (cond.norm(dim=-1, keepdim=True) / made.norm(dim=-1, keepdim=True))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _std(x: Tensor) -> Tensor:
    return at_least_float32(x).flatten(1).std(1, correction=0)


def _all_finite(x: Tensor) -> Tensor:
    return x.isfinite().all(1)
