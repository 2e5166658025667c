"""How pipelines lay out their samples: the moves of an adapter that are not the default ones.

Each copies what the pipeline itself does between its last step and its image.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

if TYPE_CHECKING:
    from clip_guidance.guidance.adapters.size import Size


def patches(pipe: Any, sample: Tensor, size: "Size | None") -> Tensor:
    """Tokens (B, h/2 * w/2, 4C), each a patch of 2 x 2 as Flux packs them, to latents (B, C, h, w)."""
    return pixel_shuffle(tokens(pipe, sample, size, patch=2), 2)


def bria_patches(pipe: Any, sample: Tensor, size: "Size | None") -> Tensor:
    """As :func:`patches`, for a ``vae_scale_factor`` that counts the patch in."""
    return pixel_shuffle(tokens(pipe, sample, size), 2)


def fibo_patches(pipe: Any, sample: Tensor, size: "Size | None") -> Tensor:
    """Bria Fibo's tokens: of one latent, or of 2 x 2 with ``do_patching``."""
    return (tokens if sample.shape[-1] == pipe.vae.config.z_dim else patches)(pipe, sample, size)


def shuffled(pipe: Any, sample: Tensor, size: "Size | None") -> Tensor:
    """Patches of 2 x 2 in the channels, (B, 4C, h/2, w/2), to latents (B, C, h, w)."""
    return pixel_shuffle(sample, 2)


def tokens(pipe: Any, sample: Tensor, size: "Size | None", patch: int = 1) -> Tensor:
    """Tokens (B, h * w, C) in rows, each of ``patch`` x ``patch`` latents, to (B, C, h, w).

    Raises:
        ValueError: The size of the image is unknown, or is not that of the sample.
    """
    if size is None:
        raise ValueError(
            f"the samples of {type(pipe).__name__} are rows of tokens, whose height and width are known only while "
            "the pipeline itself runs; use space='latent' in a loop of your own"
        )
    side = pipe.vae_scale_factor * patch
    height, width = size.height // side, size.width // side
    if sample.ndim != 3 or sample.shape[1] != height * width:
        raise ValueError(
            f"guidance expected {height} x {width} tokens for an image of {size.height} x {size.width} pixels, got a "
            f"sample of shape {tuple(sample.shape)} from {type(pipe).__name__}; use space='latent'"
        )
    return sample.transpose(1, 2).unflatten(2, (height, width))


def channels_last(pipe: Any, sample: Tensor, size: "Size | None") -> Tensor:
    """Kandinsky 5's (B, 1, h, w, C) to (B, C, h, w)."""
    return sample.squeeze(1).permute(0, 3, 1, 2)


def frames_first(pipe: Any, sample: Tensor, size: "Size | None") -> Tensor:
    """Stable Video Diffusion's (B, F, C, h, w) to (B, C, F, h, w)."""
    return sample.transpose(1, 2)


def image_part(pipe: Any, sample: Tensor, size: "Size | None") -> Tensor:
    """UniDiffuser's rows (B, C * h * w + ...), of latents and embeddings one after the other, to (B, C, h, w).

    Raises:
        ValueError: The size of the image is unknown, or the sample is a text.
    """
    if size is None or sample.ndim != 2:
        raise ValueError(
            f"guidance expected an image's row of numbers and its height and width from {type(pipe).__name__}, got a "
            f"sample of shape {tuple(sample.shape)} and size {size}; use space='latent'"
        )
    shape = (pipe.num_channels_latents, *(side // pipe.vae_scale_factor for side in (size.height, size.width)))
    return sample[:, : math.prod(shape)].unflatten(1, shape)


def as_it_is(decoder: Any, latents: Tensor) -> Tensor:
    """Nothing to do."""
    return latents


def by_scale(decoder: Any, latents: Tensor) -> Tensor:
    """Latents to the decoder's units by its scale alone, for pipelines that pass over its shift."""
    return latents / decoder.config.scaling_factor


def by_scale_factor(decoder: Any, latents: Tensor) -> Tensor:
    """Latents to the units of Wuerstchen's decoder."""
    return latents * decoder.config.scale_factor


def by_statistics(decoder: Any, latents: Tensor) -> Tensor:
    """Latents to the decoder's units by the mean and standard deviation of a channel, for any scale in its config."""
    shape = (1, -1, *[1] * (latents.ndim - 2))
    config = decoder.config
    mean, std = (torch.tensor(each).to(latents).view(shape) for each in (config.latents_mean, config.latents_std))
    return latents * std + mean


def by_batch_norm(decoder: Any, latents: Tensor, eps: float | None = None) -> Tensor:
    """Latents (B, C, h, w) to the decoder's units by the statistics of Flux 2's batch norm over patches of 2 x 2."""
    norm = decoder.bn
    variance = norm.running_var + (decoder.config.batch_norm_eps if eps is None else eps)
    std, mean = (each.view(1, -1, 1, 1).to(latents) for each in (torch.sqrt(variance), norm.running_mean))
    return pixel_shuffle(pixel_unshuffle(latents, 2) * std + mean, 2)


def one_frame_decode(decoder: Any, latents: Tensor) -> Tensor:
    """A video decoder's image: of one frame, without its opacity."""
    return decoder.decode(latents.unsqueeze(2), return_dict=False)[0][:, :3, 0]


def frames_decode(decoder: Any, latents: Tensor) -> Tensor:
    """An image decoder's frames (B, 3, F, H, W), or (B, 3, H, W) of single frames."""
    return _by_frame(lambda frames: decoder.decode(frames, return_dict=False)[0], latents)


def temporal_decode(decoder: Any, latents: Tensor) -> Tensor:
    """Frames (B, 3, F, H, W) of a decoder that is told how many belong together."""
    count = latents.shape[2]
    return _by_frame(lambda frames: decoder.decode(frames, num_frames=count, return_dict=False)[0], latents)


def _by_frame(decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    if latents.ndim == 4:
        return decode(latents)
    frames = latents.transpose(1, 2)
    return decode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


def unquantised_decode(decoder: Any, latents: Tensor) -> Tensor:
    """A vector-quantised decoder that is to skip its quantiser."""
    return decoder.decode(latents, force_not_quantize=True, return_dict=False)[0]


def unit_decode(decoder: Any, latents: Tensor) -> Tensor:
    """A decoder whose pixels are in [0, 1]."""
    return decoder.decode(latents, return_dict=False)[0] * 2 - 1


def colour_decode(decoder: Any, latents: Tensor) -> Tensor:
    """A decoder of colours and depth: the colours."""
    return decoder.decode(latents, return_dict=False)[0][:, :3]
