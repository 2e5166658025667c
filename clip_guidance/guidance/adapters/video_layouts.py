"""The moves from a video pipeline's sample to its frames, beside those of :mod:`.layouts`."""

from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder
from torch import Tensor

from clip_guidance.guidance.adapters import layouts
from clip_guidance.guidance.adapters.call_stack import PipelineCall
from clip_guidance.guidance.adapters.layouts import known_size

_FITTED, _REFERENCES = 4, 5  # frames in Kandinsky5I2VPipeline.normalize_first_frame
_LATTE_CHUNK = 14  # frames that LattePipeline decodes at a time

# Unpack: the scheduler's sample to latents (B, C, F, h, w).


def without_padding(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Unpack CogVideoX's (B, F, C, h, w), without the frames that fill up its first patch."""
    padding = (call.variables.get("additional_frames") if call else None) or 0
    return sample[:, padding:].transpose(1, 2)


def video_tokens(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Unpack LTX's rows of tokens (B, F * h * w, C), one for each latent.

    Raises:
        ValueError: The size of the video is unknown, or does not fit the number of tokens.
    """
    size, side = known_size(pipe, call), pipe.vae_spatial_compression_ratio
    height, width = size.height // side, size.width // side
    if sample.ndim != 3 or sample.shape[1] % (height * width):
        raise ValueError(
            f"guidance expected a multiple of {height} x {width} tokens for a video of {size.height} x {size.width} "
            f"pixels, got a sample of shape {tuple(sample.shape)} from {type(pipe).__name__}; use space='latent'"
        )
    return sample.transpose(1, 2).unflatten(2, (-1, height, width))


def channels_last(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Unpack Kandinsky 5's (B, F, h, w, C)."""
    return sample.movedim(4, 1)


def after_given_frame(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Put the first frame, which is given, before the others (B, C, F - 1, h, w), which alone are denoised."""
    return torch.cat([_kept_latents(pipe, sample, call)[:, :, :1].to(sample), sample], 2)


def after_given_frame_of_tokens(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Unpack as :func:`after_given_frame`, or LTX's tokens, where no frame is given."""
    return video_tokens(pipe, sample, call) if sample.ndim == 3 else _after_tokens(pipe, sample, call)


def _after_tokens(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    latents = _kept_latents(pipe, sample, call)
    latents = video_tokens(pipe, latents, call) if latents.ndim == 3 else latents
    return torch.cat([latents[:, :, :1].to(sample), sample], 2)


def after_given_frame_channels_last(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Unpack Kandinsky 5's (B, F - 1, h, w, C) after a given frame, fitted to the others' statistics."""
    given = _kept_latents(pipe, sample, call)[:, :1, ..., : sample.shape[4]].to(sample)
    latents = torch.cat([given, sample], 1)
    first, others = latents.split([_FITTED, latents.shape[1] - _FITTED], 1)
    return torch.cat([pipe.adaptive_mean_std_normalization(first, others[:, :_REFERENCES]), others], 1).movedim(4, 1)


def with_given_frame(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Put Wan 2.2's given frame in its place in the sample, (B, C, F, h, w), where ``expand_timesteps`` keeps it."""
    if not pipe.config.expand_timesteps:
        return sample
    if call is None or "condition" not in call.variables or "first_frame_mask" not in call.variables:
        raise ValueError(_unknown_part(pipe))
    made_anew, given = (call.variables[name][: len(sample)].to(sample) for name in ("first_frame_mask", "condition"))
    return made_anew * sample + (1 - made_anew) * given


def edited(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Keep ChronoEdit's given and edited frames; those between them are its reasoning."""
    return sample[:, :, [0, -1]] if call and call.variables.get("enable_temporal_reasoning") else sample


def _kept_latents(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    if call is None or call.latents is None:
        raise ValueError(_unknown_part(pipe))
    return call.latents.detach()[: len(sample)]


def _unknown_part(pipe: Any) -> str:
    return (
        f"the samples of {type(pipe).__name__} lack the given frame, which is known only while the pipeline itself "
        "runs; use space='latent' in a loop of your own"
    )


# Denormalise: latents of unit variance to what the decoder reads.


def by_buffers(decoder: Any, latents: Tensor) -> Tensor:
    """Denormalise by the mean and deviation per channel in LTX's decoder, and the scale in its config."""
    mean, std = (each.to(latents).view(1, -1, 1, 1, 1) for each in (decoder.latents_mean, decoder.latents_std))
    return latents * std / decoder.config.scaling_factor + mean


def by_kind(decoder: Any, latents: Tensor) -> Tensor:
    """Denormalise for Sana's decoders: by LTX 2's buffers, by Wan's config, or not at all."""
    if "latents_mean" in decoder._buffers:
        mean, std = (each.to(latents).view(1, -1, 1, 1, 1) for each in (decoder.latents_mean, decoder.latents_std))
        return latents * std + mean
    return layouts.by_statistics(decoder, latents) if hasattr(decoder.config, "latents_mean") else latents


# Decode: to pixels (B, 3, F, H, W) in [-1, 1].


def timestep_decode(decoder: Any, latents: Tensor) -> Tensor:
    """Decode with LTX's decoder; one that is told the noise level of its latents is told that they are clean."""
    timestep = latents.new_zeros(len(latents)) if decoder.config.timestep_conditioning else None
    return decoder.decode(latents, timestep, return_dict=False)[0]


def chunked_decode(decoder: Any, latents: Tensor) -> Tensor:
    """Decode as Latte does, with an image decoder or in chunks with a temporal one."""
    if not isinstance(decoder, AutoencoderKLTemporalDecoder):
        return layouts.frames_decode(decoder, latents)
    return torch.cat([layouts.temporal_decode(decoder, part) for part in latents.split(_LATTE_CHUNK, 2)], 2)


def frames_first_decode(decoder: Any, latents: Tensor) -> Tensor:
    """Decode with Allegro's decoder, whose frames stand before the channels."""
    return decoder.decode(latents, return_dict=False)[0].transpose(1, 2)


def later_frames_decode(decoder: Any, latents: Tensor) -> Tensor:
    """Decode without the four frames of Hunyuan's first latent frame, which is the given image."""
    return decoder.decode(latents, return_dict=False)[0][:, :, 4:]
