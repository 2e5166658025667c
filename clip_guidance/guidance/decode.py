"""From the predicted clean sample to the picture that the reward reads, as cheaply as it should be.

At 1024 x 1024 the activations that the decoder keeps for its backward are larger than those of most denoisers
(SDXL's autoencoder: 11 GiB in half precision), so :class:`Decoding` offers a smaller decoder, a smaller picture,
a part of the picture, recomputation, and one picture at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_guidance.guidance.adapters import ADAPTERS, Size, find_adapter
from clip_guidance.guidance.offload import neighbours_stay, weights_stay
from clip_guidance.guidance.prediction import at_least_float32


@dataclass(frozen=True)
class Decoding:
    """How the picture for the reward is decoded; the picture that the pipeline returns is not concerned.

    Args:
        decoder: A module in place of the pipeline's own decoder, such as ``AutoencoderTiny`` of its family (Bohan's
            TAESD: a tenth of the memory).
        resolution: Latents are shrunk to this share of their side first, in (0, 1]; memory falls with its square.
        crop: Side of the square window that is decoded, as a share of the shorter side, in (0, 1]; another random
            window at each step. Memory falls with its square, and the reward never sees the whole picture.
        checkpoint: Recompute the decoder's blocks in the backward (Chen et al. 2016, arXiv:1604.06174).
        pictures: Decode and differentiate this many pictures of a batch at a time, for one more forward of the
            decoder; None for all.
        dtype: Precision in which the decoder runs under autocast; None for its own, but bfloat16 for a float16
            decoder that says it overflows (``force_upcast``, as SDXL's).
        seed: Seed of the windows; each run starts from it.

    Raises:
        ValueError: A share is outside (0, 1] or ``pictures`` is below 1.
    """

    decoder: nn.Module | None = None
    resolution: float = 1.0
    crop: float = 1.0
    checkpoint: bool = False
    pictures: int | None = None
    dtype: torch.dtype | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("resolution", "crop"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        if self.pictures is not None and self.pictures < 1:
            raise ValueError(f"pictures must be at least 1, or None for all at once, got {self.pictures}")


class Decoder:
    """The map from a pipeline's clean sample to what the reward reads.

    Args:
        pipe: The pipeline.
        space: "image" for decoded pictures, "latent" for the sample as it is.
        decoding: How to decode.

    Raises:
        ValueError: ``space`` is "image" and it is not known how to decode this pipeline's samples, or the decoder
            that is to recompute its blocks cannot.
    """

    def __init__(self, pipe: Any, space: str, decoding: Decoding | None = None) -> None:
        self.decoding = decoding or Decoding()
        self.space = space
        self._pipe = pipe
        self._adapter = adapter = find_adapter(pipe)
        self._generator = torch.Generator()
        self._window = (0.0, 0.0)
        #: The network that a gradient passes through, if any.
        self.module: Any = None
        if space == "latent":
            return
        if adapter.decode is None:
            raise ValueError(
                f"space='image' needs to know how {type(pipe).__name__} decodes its latents; it is known for "
                f"{', '.join(ADAPTERS)}. Use space='latent' with a reward on the latents"
            )
        self.module = self.decoding.decoder or (getattr(pipe, adapter.decoder) if adapter.decoder else None)
        if self.decoding.checkpoint and not getattr(self.module, "_supports_gradient_checkpointing", False):
            raise ValueError(
                f"checkpoint=True needs a decoder that can recompute its blocks; {type(self.module).__name__} cannot. "
                "Use pictures=1, resolution or crop"
            )

    def start_run(self) -> None:
        """Start the random windows over."""
        self._generator.manual_seed(self.decoding.seed)

    def start_step(self) -> None:
        """Choose the window of the step; a step may decode several times, and must see the same one."""
        if self.decoding.crop < 1:
            self._window = tuple(torch.rand(2, generator=self._generator).tolist())

    def __call__(self, sample: Tensor, size: Size | None = None) -> Tensor:
        """Pictures (B, 3, H, W), or (B, 3, F, H, W) of a video, in [0, 1], or the sample, in float32 or better."""
        sample = at_least_float32(sample)
        if self.space == "latent":
            return sample
        adapter = self._adapter
        assert adapter.decode is not None  # refused above
        latents = self._shrunk(self._cropped(adapter.unpack(self._pipe, sample, size)))
        if self.module is None:
            return _to_unit_range(adapter.decode(None, latents))
        latents = adapter.denormalise(self.module, latents).to(_dtype(self.module))
        with self._autocast(latents.device), neighbours_stay(self.module):
            return _to_unit_range(adapter.decode(self.module, latents))

    @contextmanager
    def for_gradients(self) -> Iterator[None]:
        """Inside, a backward through the decoder finds its weights in place, and its blocks are recomputed if asked."""
        if self.module is None:
            yield
            return
        modules = [m for m in self.module.modules() if hasattr(m, "gradient_checkpointing")]
        before = [(module, module.gradient_checkpointing) for module in modules]
        with weights_stay(self.module):
            if self.decoding.checkpoint:
                self.module.enable_gradient_checkpointing()
            try:
                yield
            finally:
                for module, value in before:
                    module.gradient_checkpointing = value

    def _cropped(self, latents: Tensor) -> Tensor:
        if self.decoding.crop == 1:
            return latents
        height, width = latents.shape[-2:]
        side = max(1, round(self.decoding.crop * min(height, width)))
        top, left = (int(u * (full - side + 1)) for u, full in zip(self._window, (height, width), strict=True))
        return latents[..., top : top + side, left : left + side]

    def _shrunk(self, latents: Tensor) -> Tensor:
        if self.decoding.resolution == 1:
            return latents
        size = [max(1, round(self.decoding.resolution * side)) for side in latents.shape[-2:]]
        flat = latents.flatten(0, -4)
        flat = F.interpolate(flat, size, mode="bilinear", align_corners=False, antialias=True)
        return flat.unflatten(0, latents.shape[:-3])

    def _autocast(self, device: torch.device) -> Any:
        assert self.module is not None
        dtype = self.decoding.dtype
        if (
            dtype is None
            and _dtype(self.module) == torch.float16
            and getattr(self.module.config, "force_upcast", False)
        ):
            dtype = torch.bfloat16
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _dtype(module: nn.Module) -> torch.dtype:
    return getattr(module, "dtype", torch.float32)


def _to_unit_range(pixels: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]. The value is clipped, the gradient is not: a saturated pixel can still come back."""
    pixels = at_least_float32(pixels) / 2 + 0.5
    return pixels + (pixels.clamp(0, 1) - pixels).detach()


def at_a_time(decoding: Decoding, batch: int) -> int:
    """Number of pictures of a batch that are decoded together."""
    return min(decoding.pictures or batch, batch)
