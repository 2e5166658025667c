"""Decode the predicted clean sample to the image that the reward reads.

At 1024 x 1024 the decoder keeps more activations for the backward than most denoisers (SDXL's autoencoder: 11 GiB in
half precision), so :class:`~clip_guidance.guidance.decoding.Decoding` offers a smaller decoder, a smaller image, a part
of the image, recomputation, and one image at a time.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from clip_guidance._tensors import at_least_float32
from clip_guidance.guidance.adapters import layouts
from clip_guidance.guidance.adapters.adapter import Adapter
from clip_guidance.guidance.adapters.by_class import nearest, shortened
from clip_guidance.guidance.adapters.call_stack import PipelineCall
from clip_guidance.guidance.adapters.frames import frame_rule, spread
from clip_guidance.guidance.adapters.pipelines import ADAPTERS, find_adapter
from clip_guidance.guidance.decoding import AUTO, DecodingChoice, as_decoding
from clip_guidance.guidance.decoding import Decoding as Decoding
from clip_guidance.guidance.engine.pixels import checked_images, to_unit_range
from clip_guidance.guidance.engine.resolution import Codec, Resolution, choose
from clip_guidance.guidance.weights.clone import clone
from clip_guidance.guidance.weights.hold import held
from clip_guidance.guidance.weights.offload import keep_onloaded, no_neighbour_offload, onloaded


class Decoder:
    """Map a pipeline's clean sample to what the reward reads.

    Args:
        pipe: The pipeline.
        space: "image" for decoded images, "latent" for the sample itself.
        decoding: How to decode; None for the pipeline's own decoder and the whole image, as "auto" until :meth:`fit`.
        adapter: The pipeline's row of the table; None to look it up.
        to_image: Makes the images in place of the pipeline's decoder; None for that decoder.

    Raises:
        ValueError: ``space`` is "image" and how to decode this pipeline's samples is unknown; or the decoder of
            ``decoding`` reads other latents than the pipeline's, or cannot recompute its blocks although
            ``decoding.checkpoint`` is set.
    """

    def __init__(
        self,
        pipe: Any,
        space: str,
        decoding: Decoding | str | None = None,
        adapter: Adapter | None = None,
        to_image: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.decoding = as_decoding(decoding)
        self._fit: tuple[torch.Size, Resolution] | None = None  # what "auto" chose for latents of a shape
        self.space = space
        self.adapter = adapter or find_adapter(pipe)
        #: The network that a gradient passes through, if any.
        self.module: Any = None
        self._pipe, self._to_image = pipe, to_image
        self._random, self._window = random.Random(self.decoding.seed), (0.0, 0.0)
        self._copy: nn.Module | None = None  # of the module, in another precision or on another device
        self._copy_device: torch.device | None = None
        if space == "latent" or to_image is not None:
            return
        if self.adapter.decode is None:
            raise ValueError(
                f"it is not known how {shortened(type(pipe).__name__, 40)} decodes its latents, but of "
                f"{nearest(type(pipe).__name__, ADAPTERS)}. Give to_image=, from clean samples to images in [0, 1], or "
                "space='latent' and a reward on latents"
            )
        if self.decoding.frames is not None and not self.adapter.is_video:
            raise ValueError(
                f"frames={self.decoding.frames} chooses frames of a video; {shortened(type(pipe).__name__)} makes none"
            )
        self.module = getattr(pipe, self.adapter.decoder) if self.adapter.decoder else None
        if self.decoding.decoder is not None:
            self.adapter = _adapter_of(self.decoding.decoder, self.adapter, self.module, pipe)
            self.module = self.decoding.decoder
        #: Precision to which each layer's weights are cast for its forward alone, if they are.
        self._cast = _layerwise_dtype(self.module) if isinstance(self.module, nn.Module) else None
        if self.decoding.checkpoint and not getattr(self.module, "_supports_gradient_checkpointing", False):
            raise ValueError(
                f"checkpoint=True needs a decoder that can recompute its blocks; {type(self.module).__name__} cannot. "
                "Use images=1, resolution or crop"
            )

    def start_run(self) -> None:
        """Restart the random windows, and choose anew."""
        self._random.seed(self.decoding.seed)
        self._fit = None

    @property
    def choice(self) -> DecodingChoice | None:
        """What the resolution "auto" has come to in this run; None without it."""
        return None if self._fit is None else self._fit[1].choice

    def start_step(self) -> None:
        """Choose the window of the step, which all decodes of the step share."""
        if self.decoding.crop < 1:
            self._window = self._random.random(), self._random.random()

    def fit(self, reward: Any, latents: Tensor) -> None:
        """Choose the resolution for a reward, where it is "auto"; ``latents`` are as :meth:`unpack` returned them."""
        if self.decoding.resolution != AUTO or self.space == "latent" or self._to_image is not None:
            return
        latents = self._cropped(latents)
        if self._fit is None or self._fit[0] != latents.shape[1:]:
            network = None if self.module is None else self._network(latents.device)
            codec = Codec(network, partial(self._pixels, network), latents)
            self._fit = latents.shape[1:], choose(reward, codec)

    def __call__(self, sample: Tensor, call: PipelineCall | None = None) -> Tensor:
        """Decode a clean sample: :meth:`unpack` and :meth:`decode`.

        Returns:
            Images (B, 3, H, W) in [0, 1], or (B, 3, F, H, W) of a video; the sample itself in latent space.
        """
        return self.decode(self.unpack(sample, call))

    def unpack(self, sample: Tensor, call: PipelineCall | None = None) -> Tensor:
        """Unpack a clean sample to latents, in float32 or better.

        Args:
            sample: The predicted clean sample, (B, ...).
            call: The pipeline's call; needed where the sample is packed into tokens or lacks a part.

        Returns:
            Latents (B, C, h, w) or (B, C, F, h, w); the sample itself where no decoder of a pipeline reads it.

        Raises:
            ValueError: The sample does not have the shape that the pipeline's adapter expects.
        """
        sample = at_least_float32(sample)
        if self.space == "latent" or self._to_image is not None:
            return sample
        return self.adapter.unpack(self._pipe, sample, call)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode what :meth:`unpack` returned.

        Raises:
            ValueError: ``to_image`` returns no images, or the video has not the chosen frames.
        """
        if self.space == "latent":
            return latents
        if self._to_image is not None:
            return checked_images(self._to_image(latents), latents)
        if self.decoding.frames is None:
            return self._decoded(latents)
        count = latents.shape[2]
        chosen = spread(self.decoding.frames, count)
        decoded = frame_rule(self.module)(chosen, count)
        images = self._decoded(latents[:, :, list(decoded)])
        return images[:, :, [_at(decoded.index(i), len(decoded), images.shape[2]) for i in chosen]]

    def _decoded(self, latents: Tensor) -> Tensor:
        latents = self._shrunk(self._cropped(latents))
        network = None if self.module is None else self._network(latents.device)
        if network is not None:
            latents = self.adapter.denormalise(network, latents)
        if self._fit is not None and (shrink := self._fit[1].shrink) is not None:
            latents = shrink(latents)
        return self._pixels(network, latents)

    def _pixels(self, network: Any, latents: Tensor) -> Tensor:
        """Decode what the decoder reads, latents that are no longer of unit variance, to images in [0, 1]."""
        decode = self.adapter.decode
        assert decode is not None  # __init__ has raised otherwise
        if network is None:
            return to_unit_range(decode(None, latents))
        with no_neighbour_offload(network):
            return to_unit_range(decode(network, latents.to(_dtype(network))))

    @contextmanager
    def for_gradients(self, device: torch.device) -> Iterator[None]:
        """Keep the decoder's weights in place for a backward; recompute its blocks if asked."""
        if self.module is None:
            yield
            return
        network = self._network(device)
        with keep_onloaded(network), _recomputed(network) if self.decoding.checkpoint else nullcontext():
            yield

    def _network(self, device: torch.device) -> Any:
        """Return the decoder, or a copy in another precision or on another device.

        Only a decoder that the user passed moves to the device of the sample. Autocast is no substitute for a copy:
        under it the norms compute, and keep, float32, which takes nearly twice the memory.
        Weights that are cast layer by layer are copied too, because the backward would find them cast back.
        """
        dtype = self.decoding.dtype or self._cast
        own = self._cast or _dtype(self.module)
        if self.decoding.dtype is None and own == torch.float16 and _overflows(self.module):
            dtype = torch.bfloat16
        stays = self._cast is None and (self.decoding.decoder is None or _device(self.module) in (device, None))
        if stays and dtype in (None, _dtype(self.module)):
            return self.module
        if self._copy is None or self._copy_device != device:
            self._copy, self._copy_device = _copied(self.module, device, dtype), device
        return self._copy

    def _cropped(self, latents: Tensor) -> Tensor:
        if self.decoding.crop == 1:
            return latents
        height, width = latents.shape[-2:]
        side = _even(self.decoding.crop * min(height, width), min(height, width))
        # Some decoders normalise patches of 2 x 2, so that a window must hold whole patches.
        top, left = (
            2 * int(u * ((full - side) // 2 + 1)) for u, full in zip(self._window, (height, width), strict=True)
        )
        return latents[..., top : top + side, left : left + side]

    def _shrunk(self, latents: Tensor) -> Tensor:
        if isinstance(share := self.decoding.resolution, str) or share == 1:
            return latents
        size = [_even(share * side, side) for side in latents.shape[-2:]]
        flat = F.interpolate(latents.flatten(0, -4), size, mode="bilinear", align_corners=False, antialias=True)
        return flat.unflatten(0, latents.shape[:-3])


def _copied(decoder: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    if device.type != "meta" and any(weight.is_meta for weight in decoder.parameters()):
        raise ValueError(
            f"the decoder {type(decoder).__name__} is to compute in {dtype}, in a copy of its weights, but these are "
            "on the meta device, as enable_sequential_cpu_offload leaves them. Convert the decoder before that"
        )
    with onloaded(decoder):
        return clone(decoder, lambda w: w.to(device, dtype if w.is_floating_point() else None))


def _adapter_of(decoder: nn.Module, adapter: Adapter, replaced: Any, pipe: Any) -> Adapter:
    """Return the adapter for a decoder in place of the pipeline's own, ``replaced``."""
    given, expected = (latent_channels(each) for each in (decoder, replaced))
    if given is not None and expected is not None and given != expected:
        raise ValueError(
            f"decoder={type(decoder).__name__} reads latents of {given} channels; those of {type(pipe).__name__} have "
            f"{expected}"
        )
    if isinstance(decoder, AutoencoderTiny):  # decodes single images, from latents of unit variance
        return replace(adapter, denormalise=layouts.by_config, decode=layouts.frames_decode)
    return adapter


def latent_channels(decoder: Any) -> int | None:
    """Return the number of channels that a decoder reads; None if its config does not say."""
    config = getattr(decoder, "config", None)
    return next((n for name in ("latent_channels", "z_dim") if (n := getattr(config, name, None)) is not None), None)


@contextmanager
def _recomputed(network: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for module in network.modules():
            if hasattr(module, "gradient_checkpointing"):
                stack.enter_context(held(module, "gradient_checkpointing", True))
        network.enable_gradient_checkpointing()  # it also sets the function that recomputes
        yield


def _dtype(module: Any) -> torch.dtype:
    # The first weight is enough: diffusers' own `dtype` would walk through all modules at every step.
    weights = module.parameters() if isinstance(module, nn.Module) else ()
    return next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)


def _layerwise_dtype(module: nn.Module) -> torch.dtype | None:
    """Return the compute dtype of ``enable_layerwise_casting``; None without it."""
    registries = (getattr(each, "_diffusers_hook", None) for each in module.modules())
    hooks = (registry.get_hook("layerwise_casting") for registry in registries if registry is not None)
    return next((hook.compute_dtype for hook in hooks if hook is not None), None)


def _device(module: nn.Module) -> torch.device | None:
    return next((weight.device for weight in module.parameters()), None)


def _overflows(decoder: nn.Module) -> bool:
    return bool(getattr(getattr(decoder, "config", None), "force_upcast", False))


def _at(position: int, count: int, images: int) -> int:
    """Return which of a video's ``images`` is one that the latent frame at ``position`` of ``count`` decodes to."""
    return round(position * (images - 1) / max(count - 1, 1))


def _even(side: float, full: int) -> int:
    return min(full, max(2, 2 * int(side / 2)))


def at_a_time(decoding: Decoding, batch: int) -> int:
    """Return the number of images of a batch that are decoded together."""
    return min(decoding.images or batch, batch)
