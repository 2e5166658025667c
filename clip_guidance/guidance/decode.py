"""What is known about a pipeline: its denoiser, and how its latents become a picture.

Known classes are rows of a table; a row is found by the class name of the pipeline or of its nearest base
class. Any other pipeline with a ``unet`` or a ``transformer`` can be guided by a reward on its latents.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from clip_guidance.guidance.prediction import at_least_float32

_DENOISERS = ("unet", "transformer")


@dataclass(frozen=True)
class Adapter:
    """One row of the table.

    Attributes:
        denoiser: Name of the pipeline's attribute that predicts the noise.
        data_variance: Default variance of an element of the clean sample: 1 for normalised latents, 1/4 for
            pixels in [-1, 1].
        decode: (pipe, clean sample) -> pictures (B, 3, H, W), nominally in [0, 1], differentiable; None if
            unknown.
        decoder: Name of the pipeline's attribute that ``decode`` runs, if any.
    """

    denoiser: str
    data_variance: float = 1.0
    decode: Callable[[Any, Tensor], Tensor] | None = None
    decoder: str | None = None


def _decode_vae(pipe: Any, latents: Tensor) -> Tensor:
    vae, config = pipe.vae, pipe.vae.config
    latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)
    return _to_unit_range(vae.decode(latents.to(vae.dtype), return_dict=False)[0])


def _decode_pixels(pipe: Any, pixels: Tensor) -> Tensor:
    return _to_unit_range(pixels)


def _to_unit_range(pixels: Tensor) -> Tensor:
    """[-1, 1] to [0, 1]. The value is clipped, the gradient is not: a saturated pixel can still come back."""
    pixels = at_least_float32(pixels) / 2 + 0.5
    return pixels + (pixels.clamp(0, 1) - pixels).detach()


_VAE_LATENTS = Adapter("unet", decode=_decode_vae, decoder="vae")
_PIXELS = Adapter("unet", data_variance=0.25, decode=_decode_pixels)

ADAPTERS = {
    "StableDiffusionPipeline": _VAE_LATENTS,
    "StableDiffusionImg2ImgPipeline": _VAE_LATENTS,
    "StableDiffusionInpaintPipeline": _VAE_LATENTS,
    "StableDiffusionControlNetPipeline": _VAE_LATENTS,
    "StableDiffusionControlNetImg2ImgPipeline": _VAE_LATENTS,
    "StableDiffusionControlNetInpaintPipeline": _VAE_LATENTS,
    "DDIMPipeline": _PIXELS,
    "DDPMPipeline": _PIXELS,
}


def find_adapter(pipe: Any) -> Adapter:
    """The adapter of a pipeline, by its class or, for an unknown one, by the denoiser it holds.

    Raises:
        ValueError: The pipeline is unknown and has neither a ``unet`` nor a ``transformer``.
    """
    for cls in type(pipe).__mro__:
        if cls.__name__ in ADAPTERS:
            return ADAPTERS[cls.__name__]
    for name in _DENOISERS:
        if isinstance(getattr(pipe, name, None), nn.Module):
            return Adapter(name)
    raise ValueError(f"guidance needs a denoiser, a module named {' or '.join(_DENOISERS)}; {describe(pipe)}")


def decoder_of(pipe: Any, space: str) -> Callable[[Tensor], Tensor]:
    """The function from the clean sample to what the reward reads: decoded pictures, or the sample itself.

    Raises:
        ValueError: ``space`` is "image" and it is not known how to decode this pipeline's samples.
    """
    if space == "latent":
        return at_least_float32
    decode = find_adapter(pipe).decode
    if decode is None:
        raise ValueError(
            f"space='image' needs to know how {type(pipe).__name__} decodes its latents; it is known for "
            f"{', '.join(ADAPTERS)}. Use space='latent' with a reward on the latents"
        )
    return lambda sample: decode(pipe, sample)


def describe(pipe: Any) -> str:
    """What was found instead, for error messages."""
    held = getattr(pipe, "components", None) or vars(pipe)
    names = ", ".join(sorted(name for name in held if not name.startswith("_"))) or "nothing"
    return f"{type(pipe).__name__} holds {names}"
