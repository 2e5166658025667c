"""Call a pipeline of diffusers so that its images are differentiable in its initial noise.

A pipeline's ``__call__`` is wrapped by ``torch.no_grad``; what it wraps is called in its place. Nothing of it is
written anew: the scheduler's steps, classifier-free guidance and the decode at the end are the pipeline's own. All of
their activations are kept until the backward, so that only runs of a few steps fit into memory.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModularPipeline
from torch import Tensor, nn

from clip_guidance._tensors import at_least_float32
from clip_guidance.guidance.engine.patch import patched
from clip_guidance.guidance.weights.freeze import freeze_parameters
from clip_guidance.guidance.weights.hold import held
from clip_guidance.guidance.weights.offload import keep_onloaded, no_neighbour_offload

_ON_NUMPY = ("safety_checker", "watermark")  # they read images as arrays; the final call has them


class DifferentiableCall:
    """Make a pipeline's images from noise, with a gradient wherever gradients are enabled.

    Args:
        pipe: A pipeline of diffusers, or any callable with ``latents`` and ``generator`` whose result has ``images``.
        call: The other arguments of the pipeline.
        seed: Seed of the noise, that of the start and what the scheduler adds.
        max_steps: Most steps of the scheduler that a run may have.

    Raises:
        TypeError: ``call`` has an argument that is set here.
        ValueError: The pipeline takes no latents, or is known not to be differentiable.
    """

    def __init__(self, pipe: Any, call: Mapping[str, Any], seed: int, max_steps: int) -> None:
        for name in ("generator", "return_dict"):
            if name in call:
                raise TypeError(f"optimize_noise sets {name} itself: leave it out")
        if isinstance(pipe, ModularPipeline):
            raise ValueError(
                f"the blocks of {type(pipe).__name__} run without gradients: optimise the noise of the stock pipeline "
                "of the same model"
            )
        if "latents" not in inspect.signature(pipe).parameters:
            raise ValueError(f"{type(pipe).__name__} takes no latents, so that its initial noise cannot be given to it")
        vae: Any = getattr(pipe, "vae", None)
        if hasattr(pipe, "upcast_vae") and getattr(vae, "dtype", None) == torch.float16 and vae.config.force_upcast:
            raise ValueError(
                f"{type(pipe).__name__} casts its {type(vae).__name__} to float32 and back in the middle of a call, "
                "before a backward could pass. Load it in bfloat16, or a decoder without force_upcast"
            )
        self._pipe, self._call, self._seed, self._max_steps = pipe, dict(call), seed, max_steps
        self._dtype = torch.float32
        self._noise: Tensor | None = None  # of the call that goes on, until its first step was seen
        modules = getattr(pipe, "components", {}).values() if isinstance(pipe, DiffusionPipeline) else [pipe]
        self._modules = [module for module in modules if isinstance(module, nn.Module)]

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Keep weights frozen, and where a backward finds them, inside the ``with`` block."""
        pipe = self._pipe
        with ExitStack() as stack:
            stack.enter_context(freeze_parameters(self._modules))
            for module in self._modules:
                stack.enter_context(keep_onloaded(module))
                stack.enter_context(no_neighbour_offload(module))
            for name in _ON_NUMPY:
                if getattr(pipe, name, None) is not None:
                    stack.enter_context(held(pipe, name, None))
            if hasattr(pipe, "maybe_free_model_hooks"):  # it would offload the weights before the backward
                stack.enter_context(patched(pipe, "maybe_free_model_hooks", lambda free: None))
            if hasattr(pipe, "scheduler"):
                stack.enter_context(patched(pipe.scheduler, "step", self._step))
            yield

    def initial_noise(self) -> Tensor:
        """Return the noise that the pipeline itself would begin with, (B, ...) in float32 or better.

        Raises:
            ValueError: What the pipeline makes of ``latents`` is not a multiple of them.
        """
        if "latents" in self._call:
            noise = self._call.pop("latents")
            self._dtype = noise.dtype
            return at_least_float32(noise.detach())
        name = type(self._pipe).__name__
        if not hasattr(self._pipe, "scheduler"):
            raise ValueError(f"{name} has no scheduler to read its noise from: pass latents= to begin with")
        own = self._first_sample()
        self._dtype = own.dtype
        try:
            again = self._first_sample(latents=own)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"{name} takes latents of another form than its samples {tuple(own.shape)}: pass latents= to begin "
                f"with ({error!s:.100})"
            ) from error
        factor = _multiple(again, own)
        if factor is None:
            raise ValueError(f"{name} does not begin with the latents that it is given as its noise")
        return at_least_float32(own) / factor

    def _first_sample(self, **latents: Tensor) -> Tensor:
        """Return the sample of the first step, at which the call is ended."""
        try:
            with torch.no_grad(), patched(self._pipe.scheduler, "step", _stop):
                self._pipe(**self._call, **latents, generator=torch.Generator().manual_seed(self._seed))
        except _FirstStep as step:
            return step.sample
        raise ValueError(f"{type(self._pipe).__name__} took no step of its scheduler: its noise is not known")

    def __call__(self, noise: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] from noise (B, ...).

        Raises:
            ValueError: There are too many steps, or the images carry no gradient although the noise does.
        """
        self._noise = noise
        try:
            images = self._run(_differentiable(self._pipe), noise, "pt")
        except RuntimeError as error:
            if "requires grad" not in str(error):
                raise
            raise ValueError(f"no gradient passes through {type(self._pipe).__name__}: {error!s:.150}") from error
        if not isinstance(images, Tensor) or images.ndim != 4 or len(images) != len(noise):
            found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"optimize_noise expected a tensor of {len(noise)} images, got {found}")
        if torch.is_grad_enabled() and noise.requires_grad and not images.requires_grad:
            raise ValueError(f"{type(self._pipe).__name__} takes its images out of the graph after the last step")
        return at_least_float32(images)

    def final(self, noise: Tensor) -> list[Any]:
        """Return the images as the pipeline makes them for anybody."""
        with torch.no_grad():
            return list(self._run(self._pipe, noise, self._call.get("output_type", "pil")))

    def _run(self, pipe: Callable[..., Any], noise: Tensor, output_type: str) -> Any:
        generator = torch.Generator().manual_seed(self._seed)
        options = {**self._call, "output_type": output_type}
        output = pipe(**options, latents=noise.to(self._dtype), generator=generator)
        images = getattr(output, "images", None)
        if images is None:
            raise TypeError(f"optimize_noise needs images, and {type(self._pipe).__name__} returned none")
        return images

    def _step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Take a step; refuse what no gradient passes through, where it is seen first."""
        given, scheduler = inspect.signature(step).bind(*args, **kwargs).arguments, self._pipe.scheduler
        sample, wanted = given["sample"], torch.is_grad_enabled() and given["sample"].requires_grad
        if self._noise is not None:
            self._check_first(sample, self._noise)
            self._noise = None
        if wanted and not given["model_output"].requires_grad:
            raise ValueError(
                f"the denoiser of {type(self._pipe).__name__} gives no gradient: it is quantised or compiled without, "
                "or runs under no_grad"
            )
        result = step(*args, **kwargs)
        if wanted and not result[0].requires_grad:
            raise ValueError(f"no gradient passes through the step of {type(scheduler).__name__}: exchange it")
        return result

    def _check_first(self, sample: Tensor, noise: Tensor) -> None:
        scheduler = self._pipe.scheduler
        if (count := len(scheduler.timesteps)) > self._max_steps:
            raise ValueError(
                f"optimize_noise keeps the activations of all steps, and this run has {count}, above max_steps="
                f"{self._max_steps}. Take a few-step model with num_inference_steps=1 to 4; best_of and Particles take "
                "any number"
            )
        if torch.is_grad_enabled() and noise.requires_grad and not sample.requires_grad:
            raise ValueError(f"{type(self._pipe).__name__} takes its latents out of the graph before the first step")


class _FirstStep(Exception):
    """End a call at its first step, whose sample is wanted alone."""

    def __init__(self, sample: Tensor) -> None:
        super().__init__("the first step was reached")
        self.sample = sample


def _multiple(sample: Tensor, noise: Tensor) -> float | None:
    """Return c if the sample is c·noise, but for rounding, else None."""
    if sample.shape != noise.shape:
        return None
    sample, noise = at_least_float32(sample), at_least_float32(noise)
    factor = float((sample * noise).sum() / noise.square().sum())
    return factor if factor > 0 and (sample - factor * noise).norm() <= 0.02 * sample.norm() else None


def _stop(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    raise _FirstStep(inspect.signature(step).bind(*args, **kwargs).arguments["sample"])


def _differentiable(pipe: Any) -> Callable[..., Any]:
    """Return what the pipeline's ``__call__`` is below ``torch.no_grad``."""
    if not isinstance(pipe, DiffusionPipeline):
        return pipe
    function: Any = type(pipe).__call__
    while getattr(function, "__globals__", {}).get("__name__") == "torch.utils._contextlib":
        function = function.__wrapped__
    return lambda **call: function(pipe, **call)
