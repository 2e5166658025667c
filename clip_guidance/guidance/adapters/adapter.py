"""One row of the table of pipelines."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from clip_guidance.guidance.adapters import layouts, masks
from clip_guidance.guidance.adapters.call_stack import PipelineCall


@dataclass(frozen=True)
class Adapter:
    """Hold one row of the table.

    Attributes:
        denoiser: Name of the pipeline's attribute that predicts the noise.
        decoder: Name of the pipeline's attribute that makes the image; None if samples are pixels already, or
            if how they become pixels is unknown.
        data_variance: Default variance of an element of the clean sample: 1 for normalised latents, 1/4 for
            pixels in [-1, 1].
        unpack: From (pipe, sample, call) to latents (B, C, h, w), or (B, C, F, h, w) of a video; ``call`` is None in a
            loop written by hand.
        denormalise: From (decoder, latents) to what the decoder reads.
        decode: From (decoder, latents) to pixels (B, 3, H, W), or (B, 3, F, H, W), in [-1, 1]; None if unknown.
        is_video: Whether the latents are of a video.
        doubled: Whether the pipeline hands the sample to ``scheduler.step`` twice over, one copy for each side of
            classifier-free guidance.
        framewise: Whether the pipeline hands a batch of videos to ``scheduler.step`` as a batch of their frames,
            (B·F, C, h, w), and counts these in a variable ``frames``.
        made_anew: From (call, sample) to the share, in [0, 1], of each element that the pipeline makes anew; None if it
            makes all.
        scheduler: Name of the pipeline's attribute that takes the denoiser's steps.
    """

    denoiser: str
    decoder: str | None = "vae"
    data_variance: float = 1.0
    unpack: Callable[[Any, Tensor, PipelineCall | None], Tensor] = layouts.already_latents
    denormalise: Callable[[Any, Tensor], Tensor] = layouts.by_config
    decode: Callable[[Any, Tensor], Tensor] | None = layouts.vae_decode
    is_video: bool = False
    doubled: bool = False
    framewise: bool = False
    made_anew: Callable[[PipelineCall | None, Tensor], Tensor | None] = masks.over_latents
    scheduler: str = "scheduler"
