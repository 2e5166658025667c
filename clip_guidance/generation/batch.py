"""Images that are drawn together: which of them can be, and one call of the pipeline for all.

Each image has a random generator of its own, seeded with its own seed, so that its noise is the same in any batch and
alone; what a batch changes is rounding. What else is random (cutouts, the noise of some methods) is one draw for all
images of a batch, from one seed.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from clip_guidance.clip.tokenizer import warn_truncated
from clip_guidance.generation.image import FailedImageError, check_image, failed
from clip_guidance.generation.settings import GenerateSettings
from clip_guidance.guidance import Guidance

T = TypeVar("T")


def shared(settings: GenerateSettings) -> GenerateSettings:
    """Return what images must have in common to be drawn together: all but the texts, the targets and the seed.

    Example:
        >>> from clip_guidance.generation.batch import shared
        >>> one, other = GenerateSettings("a red apple"), GenerateSettings("a blue boat", seed=7)
        >>> shared(one) == shared(other), shared(one) == shared(replace(other, steps=30))
        (True, False)
    """
    return replace(
        settings,
        prompt="any",
        negative_prompt="any" if settings.negative_prompt else "",  # an empty one is not passed to the pipeline
        clip_prompt=None,
        clip_images=(),
        regions=(),
        seed=settings.seed if settings.cutouts > 1 else 0,  # it is the seed of the crops, too
    )


def in_batches(each: Iterable[T], size: int, settings: Callable[[T], GenerateSettings]) -> Iterator[list[T]]:
    """Group what can be drawn together, wherever it stands: the same batches whoever draws them.

    Args:
        each: What is drawn, in any order.
        size: Number of images in a batch; the last ones of a kind are fewer. Particles travel alone.
        settings: The settings of each.
    """
    waiting: dict[GenerateSettings, list[T]] = {}
    for one in each:
        key = shared(settings(one))
        batch = waiting.setdefault(key, [])
        batch.append(one)
        if len(batch) == (size if key.particles == 1 else 1):
            yield waiting.pop(key)
    yield from waiting.values()


def check_size(pipe: Any, settings: GenerateSettings) -> None:
    """Refuse a width or a height that the pipeline cannot draw.

    Raises:
        ValueError: It takes none, or its autoencoder does not reduce it to whole latents.
    """
    asked = {name: getattr(settings, name) for name in ("width", "height") if getattr(settings, name) is not None}
    parameters = inspect.signature(pipe.__call__).parameters if asked else {}
    factor = getattr(pipe, "vae_scale_factor", 1)
    for name, pixels in asked.items():
        if name not in parameters:
            raise ValueError(f"{type(pipe).__name__} draws images of one size: it takes no {name}, got {pixels}")
        if isinstance(factor, int) and pixels % factor:
            raise ValueError(f"{name} must be a multiple of {factor}, as the autoencoder needs it, got {pixels}")


def draw_batch(
    pipe: Any, guidance: Guidance | None, batch: Sequence[GenerateSettings], on_step: Callable[[], None] | None = None
) -> list[Image.Image | FailedImageError]:
    """Draw images together; in the place of one that came out empty is the error that says why.

    Args:
        pipe: The pipeline.
        guidance: What steers it, made for this batch; None for nothing.
        batch: The settings of the images, of one :func:`shared`.
        on_step: Called after every denoising step.
    """
    if getattr(pipe, "tokenizer", None) is not None:
        warn_truncated(pipe.tokenizer, [text for one in batch for text in (one.prompt, one.negative_prompt)])
    call, lost = _call(pipe, batch), dict[int, str]()
    if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:

        def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            for place in _not_finite(tensors.get("latents"), len(batch)):
                lost.setdefault(place, f"is not finite after step {step + 1} of {batch[0].steps}")
            if len(batch) == 1 and lost:
                raise failed(batch[0], lost[0])
            if lost:  # the others go on, beside zeros
                tensors["latents"] = tensors["latents"].nan_to_num(0.0, 0.0, 0.0)
            if on_step:
                on_step()
            return tensors

        call["callback_on_step_end"] = callback
    with guidance.attach(pipe) if guidance else contextlib.nullcontext():
        images = pipe(**call).images
    return [
        failed(one, lost[place]) if place in lost else _checked(image, one)
        for place, (image, one) in enumerate(zip(images, batch, strict=False))  # of particles, the best is the first
    ]


def _call(pipe: Any, batch: Sequence[GenerateSettings]) -> dict[str, Any]:
    """Return the arguments of the pipeline; a single image is no list, which some pipelines do not take."""
    first, parameters = batch[0], inspect.signature(pipe.__call__).parameters
    texts = {"prompt": [one.prompt for one in batch]}
    if first.negative_prompt:
        texts["negative_prompt"] = [one.negative_prompt for one in batch]
    # On the CPU, so that all devices get the same noise.
    generators = [torch.Generator().manual_seed(one.seed) for one in batch]
    each: dict[str, list[Any]] = {**texts, "generator": generators}
    call: dict[str, Any] = {
        **(each if len(batch) > 1 else {name: value for name, (value,) in each.items()}),
        "num_inference_steps": first.steps,
        "guidance_scale": first.guidance_scale,
        **{name: getattr(first, name) for name in ("width", "height") if getattr(first, name) is not None},
    }
    return call | (_of_particles(first, parameters, type(pipe).__name__) if first.particles > 1 else {})


def _of_particles(settings: GenerateSettings, parameters: Collection[str], name: str) -> dict[str, Any]:
    """Return the arguments of a pipeline that let particles travel, each with noise of its own.

    Raises:
        ValueError: The pipeline draws one image of a prompt.
    """
    if "num_images_per_prompt" not in parameters:
        raise ValueError(f"particles travel in pipelines that take num_images_per_prompt, which {name} does not")
    seeds = range(settings.seed, settings.seed + settings.particles)
    eta = {"eta": 1.0} if "eta" in parameters else {}  # DDIM adds no noise by itself, and copies would stay equal
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return {"num_images_per_prompt": settings.particles, "generator": generators, **eta}


def _not_finite(latents: Tensor | None, images: int) -> list[int]:
    """Return the places of the images of which no sample is finite; particles are several samples of one image."""
    if latents is None:
        return []
    finite = latents.isfinite().flatten(1).all(1).view(images, -1).any(1)
    return [place for place, sound in enumerate(finite.tolist()) if not sound]


def _checked(image: Image.Image, settings: GenerateSettings) -> Image.Image | FailedImageError:
    try:
        check_image(image, settings)
    except FailedImageError as error:
        return error
    return image
