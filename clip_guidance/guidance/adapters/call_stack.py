"""Which pipeline is running, and what it was asked for: read off the call stack.

``scheduler.step`` and the denoiser's forward do not tell who calls them, yet two pipelines may share a scheduler
or a UNet (``from_pipe``), in one thread or in several, and only the attached one is to be guided. Nor do they
tell the size of an image whose latents are packed into tokens, nor the mask of an inpainting run. All of it
stands in the local variables of the pipeline's own methods further up the stack; of a modular pipeline, in the
state that it hands from block to block.
"""

import inspect
import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

from diffusers import DiffusionPipeline, ModularPipeline
from torch import Tensor

from clip_guidance.guidance.adapters.size import Size

PIPELINES = (DiffusionPipeline, ModularPipeline)
_WANTED = ("height", "width", "mask", "latents")
_OWNERS = ("self", "components")  # of a pipeline's method, and of a modular pipeline's block
_STATES = ("block_state", "state")


@dataclass(frozen=True)
class PipelineCall:
    """The innermost pipeline that is running in this thread.

    Attributes:
        pipe: The pipeline.
        size: Height and width of its images in pixels; None if it has no such variables.
        mask: Of an inpainting run, 1 where the image is made anew; None elsewhere.
        latents: The noisy sample, where it is in the state of a modular pipeline.
    """

    pipe: Any
    size: Size | None = None
    mask: Tensor | None = None
    latents: Tensor | None = None


def current_call() -> PipelineCall | None:
    """The run that the caller belongs to; None outside of any pipeline, as in a loop written by hand."""
    frame: FrameType | None = sys._getframe(1)
    pipe: Any = None
    found: dict[str, Any] = {}  # the innermost of each name
    while frame is not None:
        variables = _locals(frame)
        owner = next((v for name in _OWNERS if isinstance(v := variables.get(name), PIPELINES)), None)
        if owner is not None and pipe is not None and owner is not pipe:
            break  # a pipeline that runs the innermost one, whose sizes may be others
        if owner is not None:
            pipe = owner
            for source in (variables, *(_entries(variables.get(name)) for name in _STATES)):
                found = {**{k: source[k] for k in _WANTED if source.get(k) is not None}, **found}
        frame = frame.f_back
    if pipe is None:
        return None
    tensors = {name: found.get(name) for name in ("mask", "latents")}
    return PipelineCall(pipe, _size(found), **{k: v if isinstance(v, Tensor) else None for k, v in tensors.items()})


def _size(found: dict[str, Any]) -> Size | None:
    height, width = found.get("height"), found.get("width")
    return Size(int(height), int(width)) if isinstance(height, int) and isinstance(width, int) else None


def _entries(state: Any) -> dict[str, Any]:
    """Of a diffusers ``PipelineState`` or ``BlockState``."""
    values = getattr(state, "values", None)  # a PipelineState's; a BlockState has attributes
    return values if isinstance(values, dict) else getattr(state, "__dict__", {})


def _locals(frame: FrameType) -> dict[str, Any]:
    """A function's variables of interest; of no interest are those of modules, which have no pipeline's ``self``."""
    if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return {}
    variables = frame.f_locals
    wanted = {name: variables[name] for name in (*_OWNERS, *_STATES, *_WANTED) if name in variables}
    if type(variables) is dict:
        # Up to Python 3.12 the frame keeps this snapshot, and with it every tensor in it, until it returns.
        variables.clear()
    return wanted
