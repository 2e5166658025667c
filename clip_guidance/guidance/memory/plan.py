"""Plan the setting of a guidance that fits a memory budget.

The activations of the decoder and of CLIP decide (:mod:`clip_guidance.guidance.memory.measure`). Settings are tried in
this order, so that a larger budget never gives a worse setting:

    exact         the same gradient for more time: cutouts in chunks, images one at a time, recomputed blocks
    approximate   another gradient: a tiny decoder if there is one, a smaller image, a part of the image
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import Any, TypeVar

import torch
from torch import nn

from clip_guidance.guidance.decoding import as_decoding
from clip_guidance.guidance.engine.decoder import Decoder, Decoding, at_a_time, latent_channels
from clip_guidance.guidance.memory.measure import (
    DecoderBytes,
    clip_rewards,
    decoder_bytes,
    decoder_on_meta,
    reward_bytes,
)
from clip_guidance.guidance.modes import Mode, find_mode
from clip_guidance.guidance.options import GuidanceOptions

AnyGuidance = TypeVar("AnyGuidance", bound=GuidanceOptions)

_UNITS = {f"{p}{i}B": (1024 if i else 1000) ** power for power, p in enumerate(("", *"KMGT")) for i in ("", "I")}
_SMALLER = ((0.75, 1.0), (0.5, 1.0), (0.5, 0.5), (0.25, 0.5))  # resolution and crop


@dataclass(frozen=True)
class MemoryPlan:
    """Describe a setting that fits a budget; ``print`` it to read what it costs and gives up.

    Attributes:
        decoding: How to decode.
        chunk: Views that pass through CLIP together; None for all.
        bytes: Largest number of bytes that the gradient holds at a time, without weights.
        budget: The budget in bytes.
        subject: What is guided, such as "1 image of 64 x 64 by StableDiffusionPipeline".
        views: Number of views that CLIP sees; 0 without CLIP.
        mode: The guidance's mode.

    Example:
        >>> import clip_guidance as cg
        >>> guidance = cg.CLIPGuidance("emoji", "a red apple", cutouts=4)
        >>> plan = cg.plan_memory(guidance, cg.load_pipeline("emoji"), "1 GiB", 64, 64)
        >>> plan.exact, plan.chunk
        (True, None)
        >>> plan.apply(guidance) is guidance
        True
    """

    decoding: Decoding
    chunk: int | None
    bytes: int
    budget: int
    subject: str
    views: int
    mode: str | Mode

    @property
    def exact(self) -> bool:
        """Return whether the gradient is of the whole image from the pipeline's decoder."""
        return not self._losses()

    def apply(self, guidance: AnyGuidance) -> AnyGuidance:
        """Give ``guidance`` this setting, from the next ``attach`` on, and return it."""
        guidance.decoding = self.decoding
        for reward in clip_rewards(guidance.reward):
            reward.chunk = self.chunk
        return guidance

    def __str__(self) -> str:
        """Describe the setting, its costs and what it gives up."""
        denoiser = (
            f"the denoiser's own activations, which mode={self.mode!r} keeps at the same time and which come on top"
        )
        return "\n".join(
            [
                f"Guidance of {self.subject}: about {readable(self.bytes)} of {readable(self.budget)}.",
                f"Chosen: {'; '.join(self._choices()) or 'everything as it is'}.",
                f"Costs: {'; '.join(self._costs()) or 'no time'}.",
                f"Gives up: {'; '.join(self._losses()) or 'nothing, the gradient is exact'}.",
                "Not counted: weights, the working memory of libraries, and "
                f"{denoiser if find_mode(self.mode).needs_tape else 'the denoiser, which is at rest at that time'}.",
            ]
        )

    def _choices(self) -> Iterator[str]:
        decoding = self.decoding
        if self.chunk is not None:
            yield f"chunk={self.chunk}, so many of the {self.views} views pass through CLIP at a time"
        if decoding.images is not None:
            yield f"images={decoding.images}, so many are decoded at a time"
        if decoding.checkpoint:
            yield "checkpoint=True, the decoder's blocks are recomputed in the backward"
        if decoding.decoder is not None:
            yield f"decoder={type(decoding.decoder).__name__} in place of the pipeline's"
        if decoding.resolution != 1:
            yield f"resolution={decoding.resolution}, latents are shrunk to that share of their side"
        if decoding.crop < 1:
            yield f"crop={decoding.crop}, a random window of that share of the side is decoded"

    def _costs(self) -> Iterator[str]:
        if self.chunk is not None:
            yield f"{ceil(self.views / self.chunk)} passes through CLIP at a guided step instead of 1"
        forwards = (self.decoding.images is not None) + self.decoding.checkpoint
        if forwards:
            yield f"{forwards} more forward{'s' * (forwards > 1)} of the decoder at a guided step"

    def _losses(self) -> list[str]:
        losses = []
        if self.decoding.decoder is not None:
            losses.append("detail that the other decoder does not draw")
        if self.decoding.resolution != 1:
            losses.append("detail: the reward sees a smaller image, of latents that the decoder was not trained on")
        if self.decoding.crop < 1:
            losses.append("the whole: the reward sees another part of the image at each step")
        return losses


def plan_memory(
    guidance: GuidanceOptions,
    pipe: Any,
    budget: float | str,
    height: int,
    width: int,
    batch: int = 1,
    tiny: nn.Module | None = None,
    frames: int | None = None,
) -> MemoryPlan:
    """Find the best setting of ``guidance`` on ``pipe`` whose activations fit a memory budget.

    ``decoder``, ``dtype`` and ``seed`` of the guidance's decoding stay; its other fields, and ``chunk``, are chosen.
    Settings with an exact gradient come first. Planning takes some seconds, and no memory of the accelerator.

    Args:
        guidance: The guidance to plan for; it is not changed.
        pipe: The pipeline that the guidance will be attached to.
        budget: What the gradient may take beside the weights: bytes, or a text such as "6GiB" or "500 MB".
        height: Height of the images in pixels.
        width: Width of the images in pixels.
        batch: Number of images in a run.
        tiny: A smaller decoder that may be used, such as ``AutoencoderTiny`` of the pipeline's family; None for none.
        frames: Number of latent frames of a video; None for images.

    Returns:
        The plan; ``print`` it, and ``plan.apply(guidance)`` uses it.

    Raises:
        ValueError: Nothing fits; the budget is not a size; the pipeline's images cannot be decoded; or the reward
            cannot be measured.

    Example:
        >>> import clip_guidance as cg
        >>> guidance = cg.CLIPGuidance("emoji", "a red apple", cutouts=4)
        >>> plan = cg.plan_memory(guidance, cg.load_pipeline("emoji"), "1 GiB", height=64, width=64)
        >>> plan.subject
        '1 image of 64 x 64 by StableDiffusionPipeline'
        >>> plan.bytes < plan.budget == 2**30
        True
    """
    available = parse_size(budget)
    estimate = _Estimate(guidance, pipe, height, width, batch, frames)
    views = max((reward.cutouts.count for reward in clip_rewards(guidance.reward)), default=0)
    chunks = _chunks(views)
    smallest: tuple[int, Decoding] | None = None
    for decoding in _decodings(guidance, tiny, batch, estimate.can_checkpoint):
        least = estimate.bytes(decoding, chunks[-1])
        if smallest is None or least < smallest[0]:
            smallest = least, decoding
        for chunk in chunks if least <= available else []:
            needed = estimate.bytes(decoding, chunk)
            if needed <= available:
                return MemoryPlan(decoding, chunk, needed, available, estimate.subject, views, _mode(guidance, pipe))
    assert smallest is not None
    raise ValueError(
        f"guidance of {estimate.subject} takes at least {readable(smallest[0])} beside the weights, with "
        f"{f'chunk={chunks[-1]} and ' if chunks[-1] else ''}{smallest[1]}; the budget is {readable(available)}. "
        f"{'Give a decoder `tiny`, or make' if tiny is None else 'Make'} smaller images"
    )


def _decodings(
    guidance: GuidanceOptions, tiny: nn.Module | None, batch: int, can_checkpoint: Any
) -> Iterator[Decoding]:
    """Yield settings from the best to the smallest, all exact ways for each size of image."""
    whole = replace(as_decoding(guidance.decoding), resolution=1.0, crop=1.0, checkpoint=False, images=None)
    seen = [whole] if tiny is None else [whole, replace(whole, decoder=tiny)]
    crops = not getattr(guidance.reward, "has_regions", False)  # a region is a part of the whole image
    smaller = [each for each in _SMALLER if crops or each[1] == 1]
    seen += [replace(seen[-1], resolution=resolution, crop=crop) for resolution, crop in smaller]
    for each in seen:
        for checkpoint in (False, True) if can_checkpoint(each) else (False,):
            for images in (None, 1) if batch > 1 else (None,):
                yield replace(each, checkpoint=checkpoint, images=images)


def _mode(guidance: GuidanceOptions, pipe: Any) -> str | Mode:
    return guidance.mode or guidance.defaults_for(pipe).mode


def _chunks(views: int) -> list[int | None]:
    """List the sizes of chunks to try: None for all views, then halves down to 1."""
    chunks: list[int | None] = [None]
    while views > 1:
        views = ceil(views / 2)
        chunks.append(views)
    return chunks


class _Estimate:
    """Estimate the bytes of each setting; settings share the measurements of their parts."""

    def __init__(
        self, guidance: GuidanceOptions, pipe: Any, height: int, width: int, batch: int, frames: int | None
    ) -> None:
        if guidance.space == "latent":
            raise ValueError("guidance with space='latent' decodes nothing: there is no setting to choose")
        if guidance.to_image is not None:
            raise ValueError("guidance with to_image uses no decoder of the pipeline: there is no setting to choose")
        self._reward, self._pipe, self._batch = guidance.reward, pipe, batch
        self._latents = _latent_shape(pipe, height, width, frames)
        self._decoder_bytes, self._reward_bytes = cache(self._measure_decoder), cache(self._measure_reward)
        what = "image" if frames is None else f"video of {frames} latent frames"
        self.subject = f"{batch} {what}{'s' * (batch > 1)} of {height} x {width} by {type(pipe).__name__}"

    def bytes(self, decoding: Decoding, chunk: int | None) -> int:
        """Estimate the peak of ``engine.gradient.reward_gradient``, in its order of work."""
        decoder = self._decoder_bytes(replace(decoding, images=None), at_a_time(decoding, self._batch))
        images = decoder.images.new_empty((self._batch, *decoder.images.shape[1:]))
        reward = self._reward_bytes(chunk, tuple(images.shape))
        if at_a_time(decoding, self._batch) == self._batch:
            return max(decoder.kept + reward, decoder.peak + images.nbytes)
        return images.nbytes + max(reward, decoder.peak + images.nbytes)

    def can_checkpoint(self, decoding: Decoding) -> bool:
        """Return whether the decoder can recompute its blocks."""
        module = Decoder(self._pipe, "image", decoding).module
        return bool(getattr(module, "_supports_gradient_checkpointing", False))

    def _measure_decoder(self, decoding: Decoding, count: int) -> DecoderBytes:
        return decoder_bytes(decoder_on_meta(Decoder(self._pipe, "image", decoding)), (count, *self._latents))

    def _measure_reward(self, chunk: int | None, shape: tuple[int, ...]) -> int:
        return reward_bytes(self._reward, torch.empty(shape, device="meta"), chunk)


def _latent_shape(pipe: Any, height: int, width: int, frames: int | None) -> tuple[int, ...]:
    """Find the shape of the latents, (C, h, w) or (C, F, h, w), by decoding a small sample."""
    decoder = decoder_on_meta(Decoder(pipe, "image"))
    channels = 3 if decoder.module is None else latent_channels(decoder.module)
    if channels is None:
        raise ValueError(
            f"plan_memory expected a decoder whose config names its latent_channels or z_dim, got "
            f"{type(decoder.module).__name__}"
        )
    middle = () if frames is None else (frames,)
    small = torch.empty((1, channels, *middle, 8, 8), device="meta")
    try:
        with torch.no_grad():
            factor = decoder(small).shape[-1] / 8
    except Exception as error:
        raise ValueError(
            f"plan_memory expected {type(pipe).__name__} to decode latents of shape {tuple(small.shape)}, which "
            f"failed; give `frames` for a video, and none for an image: {error}"
        ) from error
    return channels, *middle, ceil(height / factor), ceil(width / factor)


def parse_size(size: float | str) -> int:
    """Parse a size such as "6GiB", "500 MB" or a number into bytes.

    Raises:
        ValueError: ``size`` is none of these, or not positive.
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?I?B)\s*", size.upper()) if isinstance(size, str) else None
    found = float(match[1]) * _UNITS[match[2]] if match else size
    if isinstance(found, str) or not 0 < found < float("inf"):
        raise ValueError(f"expected a size such as '6GiB', '500 MB' or a positive number of bytes, got {size!r}")
    return int(found)


def readable(size: int) -> str:
    """Write a number of bytes in the largest fitting unit, of powers of 1024."""
    power = min(max(size.bit_length() - 1, 0) // 10, 4)
    return f"{size} B" if power == 0 else f"{size / 1024**power:.1f} {'KMGT'[power - 1]}iB"
