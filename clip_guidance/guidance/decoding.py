"""Options of how the image for the reward is decoded."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from clip_guidance.guidance.checks import as_number, as_whole, shown


@dataclass(frozen=True)
class Decoding:
    """Say how the image for the reward is decoded, to save memory and time.

    The image that the pipeline returns is not concerned.

    Args:
        decoder: A module in place of the pipeline's own decoder, such as ``AutoencoderTiny`` of its family (Bohan's
            TAESD: a tenth of the memory). It works on the device of the sample, wherever it is itself; None for the
            pipeline's own.
        resolution: Latents are shrunk to this share of their side first, in (0, 1]; memory falls with its square.
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
    resolution: float = 1.0
    crop: float = 1.0
    checkpoint: bool = False
    images: int | None = None
    dtype: torch.dtype | None = None
    seed: int = 0
    frames: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.decoder is not None and not isinstance(self.decoder, nn.Module):
            raise TypeError(f"decoder must be a module, or None, got {type(self.decoder).__name__}")
        for name in ("resolution", "crop"):
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
