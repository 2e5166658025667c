"""An image while it is drawn: the predicted clean image x̂₀ of every step, then the image itself.

x̂₀ is what the model output, as the scheduler reads it (after classifier-free and CLIP guidance), implies for the clean
sample: see :mod:`clip_guidance.guidance.adapters.prediction`. Watching changes no image.
"""

from __future__ import annotations

import inspect
import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

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
        image: RGB.
        step: of the steps, counted from 1.
    """

    image: Image.Image
    step: int


@dataclass(frozen=True)
class Finished:
    """The image, and what was warned of while it was drawn."""

    generated: GeneratedImage
    warnings: tuple[str, ...] = ()


_pipeline_in_use = threading.Lock()  # a scheduler holds the state of one run; a stopped one may still be in a step


class _Stopped(Exception):
    """Nobody looks any more."""


def drawn(drawer: ImageGenerator, settings: GenerateSettings, share: float = 0.2) -> Iterator[Preview | Finished]:
    """Draws an image and shows it on the way.

    Args:
        drawer: draws, in a thread of its own; one that nobody waits for any more stops at the next step.
        settings: what to draw.
        share: of the time, in (0, 1], that previews may take: decoders of large images are slow.

    Yields:
        Previews, then the finished image.

    Raises:
        ValueError: as ``ImageGenerator``.
    """
    events: queue.Queue[Preview | Finished | BaseException] = queue.Queue()
    unwatched = threading.Event()

    def show(preview: Preview) -> None:
        if unwatched.is_set():
            raise _Stopped
        events.put(preview)

    def work() -> None:
        try:
            with _pipeline_in_use, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                with watched(drawer.pipeline(settings), show, share):
                    generated = drawer(settings)
            told = (str(each.message) for each in caught if issubclass(each.category, UserWarning))
            events.put(Finished(generated, tuple(dict.fromkeys(told))))
        except BaseException as error:  # told by the thread that waits
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
def watched(pipe: Any, show: Callable[[Preview], None], share: float = 1.0) -> Iterator[None]:
    """Inside, ``show`` gets what the pipeline predicts at its steps.

    Args:
        pipe: a diffusers pipeline; one whose samples cannot be decoded is left alone.
        show: is called before ``scheduler.step``; what it raises ends the run.
        share: of the time that decoding may take, in (0, 1]; the first step is always shown.
    """
    try:
        predict = _Predictor(pipe)
    except ValueError:  # guidance would say so; without it, the image can be drawn
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

    with patched(pipe.scheduler, "step", step):
        yield


class _Predictor:
    """The predicted clean image of one pipeline.

    Raises:
        ValueError: it is not known what the scheduler predicts, or how samples are decoded.
    """

    def __init__(self, pipe: Any) -> None:
        self._host = resolve(pipe)
        self._decode = Decoder(pipe, "image", adapter=self._host.adapter)

    @torch.no_grad()
    def __call__(self, model_output: Any, timestep: Any, sample: Any) -> Image.Image | None:
        """The first of the batch; None where the output says nothing about x₀ (α = 0), and for videos."""
        mean = model_output[:1, : sample.shape[1]]  # some outputs predict a variance too
        x0 = self._host.prediction_type.to_x0(mean, sample[:1], self._host.noise_level(timestep))
        if not x0.isfinite().all():
            return None
        run = current_call()
        pixels = self._decode(x0, run.size if run else None)
        return load_image(pixels[0]) if pixels.ndim == 4 and pixels.isfinite().all() else None
