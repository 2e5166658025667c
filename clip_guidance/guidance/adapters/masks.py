"""Which part of the sample a pipeline makes anew, where it keeps the rest or puts a given image in its place.

What a shift would change elsewhere, the pipeline undoes.
"""

from torch import Tensor

from clip_guidance.guidance.adapters.call_stack import PipelineCall


def everywhere(call: PipelineCall | None, sample: Tensor) -> None:
    """Mask nothing: a variable ``mask`` of the pipeline is something else."""


def over_latents(
    call: PipelineCall | None, sample: Tensor, name: str = "mask", repainted: float = 1.0
) -> Tensor | None:
    """Return the share of each element of ``sample`` that is made anew, by a mask over the latents.

    Args:
        call: The pipeline's call.
        sample: The sample, (B, ...).
        name: Name of the pipeline's variable.
        repainted: Its value where the image is made anew, 0 or 1.

    Returns:
        A tensor that multiplies the sample; None without such a mask, as where one tells a denoiser what to keep or
        belongs to attention.
    """
    mask = call.variables.get(name) if call is not None else None
    if not isinstance(mask, Tensor):
        return None
    mask = mask.detach()[: len(sample)]  # with classifier-free guidance there are two copies
    fits = mask.ndim == sample.ndim and len(mask) in (1, len(sample))
    if not fits or any(given not in (1, side) for given, side in zip(mask.shape[1:], sample.shape[1:], strict=True)):
        return None
    mask = mask.to(sample)
    return mask if repainted else 1 - mask


def over_patches(call: PipelineCall | None, sample: Tensor) -> Tensor | None:
    """Return the share of each element of packed tokens that is made anew, by Flux Fill's mask over pixels.

    A token (4C) holds 2 x 2 latents, and its mask their pixels, (4 · pixels of a latent); a latent is made anew as far
    as its pixels are.
    """
    mask = call.mask if call is not None else None
    if mask is None or mask.ndim != 3 or mask.shape[1] != sample.shape[1] or mask.shape[2] % 4:
        return None
    of_latents = mask.detach()[: len(sample)].unflatten(2, (-1, 4)).float().mean(2)
    return of_latents.repeat(1, 1, sample.shape[2] // 4).to(sample)
