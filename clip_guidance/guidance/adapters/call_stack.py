"""The pipeline that is being called, and the call's arguments, read from the call stack.

``scheduler.step`` and the denoiser's forward do not tell who calls them, yet two pipelines may share a scheduler or a
UNet (``from_pipe``), in one thread or in several, and only the attached one is to be guided. Nor do they tell the size
of an image whose latents are packed into tokens, nor the mask of an inpainting run. All of these are local variables
of the pipeline's methods further up the stack, or, in a modular pipeline, of the state that goes from block to block.
"""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from diffusers import DiffusionPipeline, ModularPipeline
from torch import Tensor

from clip_guidance.guidance.adapters.size import Size

PIPELINES = (DiffusionPipeline, ModularPipeline)
_WANTED = (
    *("height", "width", "mask", "latents", "timesteps"),
    *("prompt", "generator", "num_images_per_prompt", "num_videos_per_prompt"),
    *("frames", "additional_frames", "image_condition_type", "enable_temporal_reasoning"),  # of videos
    *("condition", "first_frame_mask", "cond_mask", "mask_image"),  # of images that are given
)
_OWNERS = ("self", "components")  # of a pipeline's method, and of a modular pipeline's block
_STATES = ("block_state", "state")


@dataclass(frozen=True)
class PipelineCall:
    """Hold the innermost pipeline being called in this thread, with arguments of the call.

    Attributes:
        pipe: The pipeline.
        size: Height and width of the images in pixels; None if the pipeline has no such variables.
        mask: Mask of an inpainting run, 1 where the image is made anew; None for other pipelines.
        latents: The noisy sample, with what the pipeline keeps beside it; None if it has no such variable.
        timesteps: Timesteps of the run, where the pipeline keeps them apart from its scheduler's; else None.
        variables: All that was found, by name; what a name means, and whether it is there, depends on the pipeline.
    """

    pipe: Any
    size: Size | None = None
    mask: Tensor | None = None
    latents: Tensor | None = None
    timesteps: Tensor | None = None
    variables: Mapping[str, Any] = field(default_factory=dict, repr=False)


def current_call() -> PipelineCall | None:
    """Find the pipeline's call that the caller belongs to; None in a loop written by hand."""
    frame: FrameType | None = sys._getframe(1)
    pipe: Any = None
    found: dict[str, Any] = {}  # the innermost of each name
    while frame is not None:
        variables = _locals(frame)
        owner = _owner(variables)
        if owner is not None and pipe is not None and owner is not pipe:
            break  # an outer pipeline calls the innermost one, and its sizes may differ
        if owner is not None:
            pipe = owner
            for source in (variables, *(_entries(variables.get(name)) for name in _STATES)):
                found = {**{k: source[k] for k in _WANTED if source.get(k) is not None}, **found}
        frame = frame.f_back
    if pipe is None:
        return None
    tensors = {name: found.get(name) for name in ("mask", "latents", "timesteps")}
    tensors = {name: value if isinstance(value, Tensor) else None for name, value in tensors.items()}
    return PipelineCall(pipe, _size(found), **tensors, variables=found)


class RunningCall:
    """Know whether a pipeline's call, of whatever thread, goes on.

    To read the variables or the callers of another thread's frame can crash the interpreter, so this thread keeps its
    own frame. Others ask the frame to let its variables go, which raises as long as it is being executed.

    Args:
        scheduler: The pipeline's scheduler; the call is the outermost one in this thread of a pipeline that holds it.
    """

    def __init__(self, scheduler: Any = None) -> None:
        self._frame: FrameType | None = None
        frame: FrameType | None = sys._getframe(1)
        while scheduler is not None and frame is not None:
            owner = _owner(_locals(frame))
            if owner is not None and any(held is scheduler for held in vars(owner).values()):
                self._frame = frame
            frame = frame.f_back

    def goes_on(self) -> bool:
        """Return whether there is a call, which a loop written by hand does not have, and it has not returned."""
        if self._frame is None:
            return False
        try:
            self._frame.clear()
        except RuntimeError:
            return True
        self._frame = None
        return False

    def __deepcopy__(self, memo: dict[int, Any]) -> "RunningCall":
        return RunningCall()  # a frame cannot be copied, and a copy's owner runs nothing


def _owner(variables: Mapping[str, Any]) -> Any:
    """Find the pipeline among a function's variables: of its method, or of a modular pipeline's block."""
    return next((v for name in _OWNERS if isinstance(v := variables.get(name), PIPELINES)), None)


def _size(found: dict[str, Any]) -> Size | None:
    height, width = found.get("height"), found.get("width")
    return Size(int(height), int(width)) if isinstance(height, int) and isinstance(width, int) else None


def _entries(state: Any) -> dict[str, Any]:
    """Return the entries of a diffusers ``PipelineState`` or ``BlockState`` by name."""
    values = getattr(state, "values", None)  # PipelineState has values, BlockState has attributes
    return values if isinstance(values, dict) else getattr(state, "__dict__", {})


def _locals(frame: FrameType) -> dict[str, Any]:
    """Return the variables of interest of a function's frame; a module's frame has none."""
    if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return {}
    variables = frame.f_locals
    wanted = {name: variables[name] for name in (*_OWNERS, *_STATES, *_WANTED) if name in variables}
    if type(variables) is dict:
        # Up to Python 3.12 the frame keeps this snapshot, and with it every tensor in it, until it returns.
        variables.clear()
    return wanted
