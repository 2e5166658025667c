"""Options of how the image for the reward is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from clip_guidance.guidance.checks import as_number, as_whole, shown

AUTO = "auto"


@dataclass(frozen=True)
class DecodingChoice:
    """Tell what ``resolution="auto"`` chose, and why.

    Attributes:
        resolution: Share of their side to which latents are shrunk, in (0, 1]; 1 for the full decode.
        cosine: Least cosine between the embeddings of the smaller and of the full decode that was found for the
            smallest size that passed, or else for the largest that failed; None where nothing was compared.
        reason: Why, in words.

    Example:
        >>> import clip_guidance as cg
        >>> pipe = cg.load_pipeline("emoji")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> with cg.CLIPGuidance("emoji", "a red apple").attach(pipe) as guidance:
        ...     image = pipe("an apple", num_inference_steps=1).images[0]
        >>> guidance.report.decoding
        DecodingChoice(resolution=1.0, cosine=None, reason='the image is no larger than what the reward reads')
    """

    resolution: float
    cosine: float | None
    reason: str


@dataclass(frozen=True)
class Decoding:
    """Say how the image for the reward is decoded, to save memory and time.

    The image that the pipeline returns is not concerned.

    Args:
        decoder: A module in place of the pipeline's own decoder, such as ``AutoencoderTiny`` of its family (Bohan's
            TAESD: a tenth of the memory). It works on the device of the sample, wherever it is itself; None for the
            pipeline's own.
        resolution: Latents are shrunk to this share of their side first, in (0, 1]; memory falls with its square.
            "auto" shrinks them so that the image is no smaller than what the reward's CLIP reads, and only where that
            hardly changes what CLIP sees: :mod:`clip_guidance.guidance.engine.resolution` says how this is checked,
            ``guidance.report.decoding`` what came of it. A reward of another kind, and a compiled
            autoencoder, get the full image.
        crop: Side of the square window that is decoded, as a share of the shorter side, in (0, 1]; another random
            window at each step. Memory falls with its square, and the reward never sees the whole image.
        checkpoint: Recompute the decoder's blocks in the backward (Chen et al. 2016, arXiv:1604.06174), which takes
            less memory and more time.
        images: Decode and differentiate this many images of a batch at a time, for one more forward of the
            decoder; None for all.
        dtype: Precision in which the decoder runs; None for its own, but bfloat16 for a float16 decoder that says it
            overflows (``force_upcast``, as SDXL's). A precision other than its own takes a copy of its weights.
        frames: Of a video, the latent frames whose images the reward reads: so many, evenly spread, or those at these
            positions, counted from 0, negative ones from the end; None for all. One image is read of those that a
            latent frame decodes to. A decoder of images decodes them alone, a causal one decodes the video up to the
            last of them, any other the whole video; the images are the same in each case.
        seed: Seed of the random windows; each run starts from it.

    Raises:
        TypeError: An argument is of another type.
        ValueError: A share is outside (0, 1], ``images`` or a number of ``frames`` is below 1, or ``frames`` is empty.

    Example:
        >>> import clip_guidance as cg
        >>> decoding = cg.Decoding(resolution=0.5, images=1)  # a quarter of the memory, one image at a time
        >>> cg.CLIPGuidance("emoji", "a red apple", decoding=decoding).decoding.resolution
        0.5
    """

    decoder: nn.Module | None = None
    resolution: float | Literal["auto"] = 1.0
    crop: float = 1.0
    checkpoint: bool = False
    images: int | None = None
    dtype: torch.dtype | None = None
    seed: int = 0
    frames: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.decoder is not None and not isinstance(self.decoder, nn.Module):
            raise TypeError(f"decoder must be a module, or None, got {type(self.decoder).__name__}")
        named = isinstance(self.resolution, str)
        if named and self.resolution != AUTO:
            raise ValueError(f"resolution must be in (0, 1], or 'auto', got {shown(self.resolution)}")
        for name in ("crop",) if named else ("resolution", "crop"):
            if not 0 < as_number(name, getattr(self, name)) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {shown(getattr(self, name))}")
        if self.images is not None:
            as_whole("images", self.images, "at least 1, or None for all at once", 1)
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise TypeError(f"dtype must be a floating-point dtype of torch, or None, got {shown(self.dtype)}")
        as_whole("seed", self.seed, "a whole number", -(2**63))
        if isinstance(self.frames, (list, tuple)):
            if not self.frames:
                raise ValueError("frames must name at least one latent frame, got none")
            positions = tuple(as_whole("frames", each, "positions of latent frames", -(2**31)) for each in self.frames)
            object.__setattr__(self, "frames", positions)
        elif self.frames is not None:
            count = as_whole("frames", self.frames, "at least 1, positions of latent frames, or None for all", 1)
            object.__setattr__(self, "frames", count)


def as_decoding(decoding: "Decoding | str | None") -> Decoding:
    """Return the settings that a guidance's ``decoding`` stands for: "auto", or None for the full decode."""
    return Decoding(resolution="auto") if isinstance(decoding, str) else decoding or Decoding()
