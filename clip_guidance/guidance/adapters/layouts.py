"""The moves from a pipeline's sample to its image: unpack, denormalise, decode.

Each repeats what the pipeline does between its last step and its image. :mod:`.pipelines` says which pipeline needs
which moves.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from clip_guidance.guidance.adapters.call_stack import PipelineCall
from clip_guidance.guidance.adapters.size import Size

# Unpack: the scheduler's sample to latents (B, C, h, w).


def already_latents(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Return the sample, which needs no unpacking."""
    return sample


def patches(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Unpack Flux's tokens (B, h/2 * w/2, 4C), patches of 2 x 2, to latents (B, C, h, w)."""
    return pixel_shuffle(tokens(pipe, sample, call, patch=2), 2)


def bria_patches(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Unpack as :func:`patches` does, for a ``vae_scale_factor`` that includes the patch."""
    return pixel_shuffle(tokens(pipe, sample, call), 2)


def fibo_patches(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Unpack Bria Fibo's tokens: of one latent each, or of 2 x 2 with ``do_patching``."""
    return (tokens if sample.shape[-1] == pipe.vae.config.z_dim else patches)(pipe, sample, call)


def channel_patches(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Unpack patches of 2 x 2 in the channels, (B, 4C, h/2, w/2), to latents (B, C, h, w)."""
    return pixel_shuffle(sample, 2)


def tokens(pipe: Any, sample: Tensor, call: PipelineCall | None, patch: int = 1) -> Tensor:
    """Unpack rows of tokens (B, h * w, C), of ``patch`` x ``patch`` latents, to (B, C, h, w).

    Raises:
        ValueError: The size of the image is unknown, or does not fit the number of tokens.
    """
    size = known_size(pipe, call)
    side = pipe.vae_scale_factor * patch
    height, width = size.height // side, size.width // side
    if sample.ndim != 3 or sample.shape[1] != height * width:
        raise ValueError(
            f"guidance expected {height} x {width} tokens for an image of {size.height} x {size.width} pixels, got a "
            f"sample of shape {tuple(sample.shape)} from {type(pipe).__name__}; use space='latent'"
        )
    return sample.transpose(1, 2).unflatten(2, (height, width))


def known_size(pipe: Any, call: PipelineCall | None) -> Size:
    """Return the size of the images that the pipeline is making.

    Raises:
        ValueError: It is unknown, as in a loop written by hand.
    """
    if call is None or call.size is None:
        raise ValueError(
            f"the samples of {type(pipe).__name__} are rows of tokens, whose height and width are known only while "
            "the pipeline itself runs; use space='latent' in a loop of your own"
        )
    return call.size


def channels_last(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Unpack Kandinsky 5's (B, 1, h, w, C) to (B, C, h, w)."""
    return sample.squeeze(1).permute(0, 3, 1, 2)


def frames_first(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Unpack Stable Video Diffusion's (B, F, C, h, w) to (B, C, F, h, w)."""
    return sample.transpose(1, 2)


def squeezed(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Unpack Anima's video of one frame, (B, C, 1, h, w), to latents (B, C, h, w)."""
    return sample.squeeze(2)


def ideogram_patches(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Unpack Ideogram 4's tokens (B, h/2 * w/2, 4C), whose patches of 2 x 2 stand before the channels."""
    patched = tokens(pipe, sample, call, pipe.patch_size)
    return pixel_shuffle(patched.unflatten(1, (pipe.patch_size**2, -1)).transpose(1, 2).flatten(1, 2), pipe.patch_size)


def two_slices(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Unpack the refiner's (B, 2C, 1, h, w), two slices of which the second is the image's, to (B, C, h, w)."""
    return pipe._restore_image_tokens_order(sample).squeeze(2)


def image_part(pipe: Any, sample: Tensor, call: PipelineCall | None) -> Tensor:
    """Unpack UniDiffuser's rows (B, C * h * w + ...) to latents (B, C, h, w); drop embeddings.

    Raises:
        ValueError: The size of the image is unknown, or the sample is a text.
    """
    size = call.size if call else None
    if size is None or sample.ndim != 2:
        raise ValueError(
            f"guidance expected an image's row of numbers and its height and width from {type(pipe).__name__}, got a "
            f"sample of shape {tuple(sample.shape)} and size {size}; use space='latent'"
        )
    shape = (pipe.num_channels_latents, *(side // pipe.vae_scale_factor for side in (size.height, size.width)))
    return sample[:, : math.prod(shape)].unflatten(1, shape)


# Denormalise: latents of unit variance to what the decoder reads.


def identity(decoder: Any, latents: Tensor) -> Tensor:
    """Return the latents: the decoder reads them, or they are pixels."""
    return latents


def by_config(decoder: Any, latents: Tensor) -> Tensor:
    """Denormalise by the config's mean and deviation per channel, or its scale and shift."""
    config = decoder.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        mean, std = (_per_channel(each, latents) for each in (mean, std))
    else:
        mean, std = getattr(config, "shift_factor", None) or 0, 1
    return latents * std / (getattr(config, "scaling_factor", None) or 1) + mean


def by_scale(decoder: Any, latents: Tensor) -> Tensor:
    """Denormalise by the scale in the config alone, for pipelines that ignore the shift."""
    return latents / decoder.config.scaling_factor


def by_scale_factor(decoder: Any, latents: Tensor) -> Tensor:
    """Denormalise for Wuerstchen's decoder."""
    return latents * decoder.config.scale_factor


def by_statistics(decoder: Any, latents: Tensor) -> Tensor:
    """Denormalise by the config's mean and deviation per channel; ignore its scale."""
    mean, std = (_per_channel(each, latents) for each in (decoder.config.latents_mean, decoder.config.latents_std))
    return latents * std + mean


def _per_channel(values: Any, latents: Tensor) -> Tensor:
    """View one number per channel, (C,), as (1, C, 1, ...) of the dimensions of ``latents``."""
    return torch.as_tensor(values).to(latents).view(1, -1, *[1] * (latents.ndim - 2))


def by_batch_norm(decoder: Any, latents: Tensor, eps: float | None = None) -> Tensor:
    """Denormalise by the statistics of Flux 2's batch norm over patches of 2 x 2.

    Args:
        decoder: The decoder, which holds the batch norm.
        latents: The latents.
        eps: Added to the variance; None for the value in the config.
    """
    norm = decoder.bn
    variance = norm.running_var + (decoder.config.batch_norm_eps if eps is None else eps)
    std, mean = (each.view(1, -1, 1, 1).to(latents) for each in (torch.sqrt(variance), norm.running_mean))
    return pixel_shuffle(pixel_unshuffle(latents, 2) * std + mean, 2)


def by_patch_norm(decoder: Any, latents: Tensor) -> Tensor:
    """Denormalise by the statistics of Ideogram 4's batch norm, whose patches of 2 x 2 stand before the channels."""
    norm, channels = decoder.bn, latents.shape[1]
    statistics = torch.sqrt(norm.running_var + decoder.config.batch_norm_eps), norm.running_mean
    std, mean = (each.unflatten(0, (-1, channels)).T.reshape(1, -1, 1, 1).to(latents) for each in statistics)
    return pixel_shuffle(pixel_unshuffle(latents, 2) * std + mean, 2)


# Decode: to pixels (B, 3, H, W), or (B, 3, F, H, W) of a video, in [-1, 1].


def vae_decode(decoder: Any, latents: Tensor) -> Tensor:
    """Decode with any diffusers autoencoder."""
    return decoder.decode(latents, return_dict=False)[0]


def one_frame_decode(decoder: Any, latents: Tensor) -> Tensor:
    """Decode one frame with a video decoder, without the opacity."""
    return decoder.decode(latents.unsqueeze(2), return_dict=False)[0][:, :3, 0]


def frames_decode(decoder: Any, latents: Tensor) -> Tensor:
    """Decode frames (B, 3, F, H, W), or images (B, 3, H, W), with an image decoder."""
    return _by_frame(lambda frames: decoder.decode(frames, return_dict=False)[0], latents)


def temporal_decode(decoder: Any, latents: Tensor) -> Tensor:
    """Decode frames (B, 3, F, H, W) with a decoder that is told how many frames belong together."""
    count = latents.shape[2]
    return _by_frame(lambda frames: decoder.decode(frames, num_frames=count, return_dict=False)[0], latents)


def _by_frame(decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    if latents.ndim == 4:
        return decode(latents)
    frames = latents.transpose(1, 2)
    return decode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


def unquantised_decode(decoder: Any, latents: Tensor) -> Tensor:
    """Decode with a vector-quantised decoder, past its quantiser."""
    return decoder.decode(latents, force_not_quantize=True, return_dict=False)[0]


def unit_decode(decoder: Any, latents: Tensor) -> Tensor:
    """Decode with a decoder whose pixels are in [0, 1]."""
    return decoder.decode(latents, return_dict=False)[0] * 2 - 1


def colour_decode(decoder: Any, latents: Tensor) -> Tensor:
    """Decode the colours with a decoder of colours and depth."""
    return decoder.decode(latents, return_dict=False)[0][:, :3]
