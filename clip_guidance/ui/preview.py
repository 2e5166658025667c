"""Previews of a running generation: the clean image x̂₀ that each step predicts.

x̂₀ is the clean sample that the model output implies, after classifier-free and CLIP guidance, as the scheduler reads
it: see :mod:`clip_guidance.guidance.adapters.prediction`. Previews do not change the finished image.
"""

from __future__ import annotations

import inspect
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import SchedulerMixin

from clip_guidance.generation.candidates import Candidates
from clip_guidance.generation.generator import ImageGenerator
from clip_guidance.generation.image import GeneratedImage
from clip_guidance.generation.settings import GenerateSettings
from clip_guidance.guidance.adapters.call_stack import current_call
from clip_guidance.guidance.engine.decoder import Decoder
from clip_guidance.guidance.engine.host import resolve
from clip_guidance.guidance.engine.patch import patched
from clip_guidance.images.load import load_image

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Preview:
    """The clean image that a step predicts.

    Attributes:
        image: The prediction, in RGB.
        step: Number of the step, from 1.
    """

    image: Image.Image
    step: int


@dataclass(frozen=True)
class Finished:
    """The end of a generation.

    Attributes:
        generated: The image with its settings and scores.
        warnings: Messages of the warnings that were issued on the way, each of them once, and the candidates that
            failed.
    """

    generated: GeneratedImage
    warnings: tuple[str, ...] = ()


# A scheduler holds the state of one generation, and a generation that was stopped may still be in its last step.
_pipeline_in_use = threading.Lock()


class Stopped(Exception):
    """The generation was stopped before its image was finished."""


def generate_with_previews(
    generator: ImageGenerator,
    settings: GenerateSettings,
    share: float = 0.2,
    candidates: Candidates | None = None,
    stopping: threading.Event | None = None,
) -> Iterator[Preview | Finished]:
    """Generate an image in a thread of its own and yield previews on the way.

    A caller that closes the iterator early stops the generation at its next step.

    Args:
        generator: Generates the image.
        settings: Settings of the image.
        share: Share of the time that previews may take, in (0, 1]; decoders of large images are slow.
        candidates: Candidates of which the best is the image; their steps are counted on. None for this image alone.
        stopping: Stops the generation before its next step once it is set, in whichever thread. None where nobody may.

    Yields:
        Previews, then the finished image.

    Raises:
        ValueError: A model is unknown, or a setting is out of range.
        Stopped: ``stopping`` was set before the last step.
    """
    events: queue.Queue[Preview | Finished | BaseException] = queue.Queue()
    unwatched = threading.Event()

    def check() -> None:
        if unwatched.is_set() or (stopping and stopping.is_set()):
            raise Stopped

    def work() -> None:
        try:
            with _pipeline_in_use, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                check()
                pipe = generator.pipeline(settings)
                with show_previews(pipe, events.put, share), _before_each_step(pipe, check):
                    generated = generator.best_of(settings, candidates)[0] if candidates else generator(settings)
            messages = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
            failed = generated.choice.failed if generated.choice else []
            messages += [f"the candidate of seed {each['seed']} {each['reason']}" for each in failed]
            events.put(Finished(generated, tuple(dict.fromkeys(messages))))
        except BaseException as error:  # the consuming thread raises it
            events.put(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while not isinstance(event := events.get(), Finished):
            if isinstance(event, BaseException):
                raise event
            yield event
        yield event
    finally:
        unwatched.set()
        worker.join()


@contextmanager
def _before_each_step(pipe: Any, check: Callable[[], None]) -> Iterator[None]:
    """Call ``check`` before each step of a pipeline's schedulers; an exception from it ends the pipeline's call."""

    def step(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        check()
        return original(*args, **kwargs)

    with ExitStack() as patches:
        for part in pipe.components.values():
            if isinstance(part, SchedulerMixin):
                patches.enter_context(patched(part, "step", step))
        yield


@contextmanager
def show_previews(pipe: Any, show: Callable[[Preview], None], share: float = 1.0) -> Iterator[None]:
    """Call ``show`` with the clean image that a pipeline predicts at its steps.

    A pipeline whose samples cannot be decoded runs without previews.

    Args:
        pipe: A diffusers pipeline.
        show: Called before ``scheduler.step``.
        share: Share of the time that decoding may take, in (0, 1]. The first step is always shown.
    """
    try:
        predict = _Predictor(pipe)
    except ValueError:  # guidance raises the same error; without guidance, the pipeline works
        yield
        return
    steps, next_time = 0, 0.0

    def step(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal steps, next_time
        steps += 1
        if (began := time.monotonic()) >= next_time:
            call = inspect.signature(original).bind(*args, **kwargs).arguments
            image = predict(call["model_output"], call["timestep"], call["sample"])
            if image is not None:
                show(Preview(image, steps))
            next_time = (now := time.monotonic()) + (now - began) * (1 / share - 1)
        return original(*args, **kwargs)

    with patched(predict.scheduler, "step", step):
        yield


class _Predictor:
    """Computes the clean image that a pipeline predicts at a step.

    Raises:
        ValueError: The prediction type of the scheduler or the decoder of the samples is unknown.
    """

    def __init__(self, pipe: Any) -> None:
        self._host = resolve(pipe)
        self.scheduler = self._host.scheduler
        self._decode = Decoder(pipe, "image", adapter=self._host.adapter)

    @torch.no_grad()
    def __call__(self, model_output: Any, timestep: Any, sample: Any) -> Image.Image | None:
        """Decode the first image of the batch.

        Returns:
            The image; None for videos, and where the output does not determine x₀ (α = 0).
        """
        mean = model_output[:1, : sample.shape[1]]  # some denoisers also predict a variance, in further channels
        x0 = self._host.prediction_type.to_x0(mean, sample[:1], self._host.noise_level(timestep))
        if not x0.isfinite().all():
            return None
        pixels = self._decode(x0, current_call())
        return load_image(pixels[0]) if pixels.ndim == 4 and pixels.isfinite().all() else None
