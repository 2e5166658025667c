"""The plug-in: guidance enters a pipeline at ``scheduler.step``, and nowhere else.

Every pipeline hands its prediction, after classifier-free guidance, to ``scheduler.step(model_output,
timestep, sample)``. :class:`GuidedStep` takes the place of that method on the one scheduler instance, and
lets the scheduler see a better ``model_output``; the sample is never touched, so that multistep solvers keep
a consistent history.
"""

import functools
import inspect
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clip_guidance.guidance.decode import decoder_of, describe, find_adapter
from clip_guidance.guidance.modes import MODES, DenoiserTape
from clip_guidance.guidance.modes.x0 import posterior_variance
from clip_guidance.guidance.noise import level_resolver, noise_level, step_index
from clip_guidance.guidance.prediction import Prediction, prediction_type

if TYPE_CHECKING:
    from clip_guidance.guidance.guidance import Guidance


def attach(guidance: "Guidance", pipe: Any) -> AbstractContextManager["Guidance"]:
    """See :meth:`Guidance.attach`. What cannot work is refused here, before anything is changed."""
    return _attached(Attachment(guidance, pipe), pipe)


class Attachment:
    """One guidance on one pipeline: what is known of the pipeline, and what is remembered during a run."""

    def __init__(self, guidance: "Guidance", pipe: Any) -> None:
        self.guidance = guidance
        self.scheduler: Any = getattr(pipe, "scheduler", None)
        if self.scheduler is None:
            raise ValueError(f"guidance needs a pipeline with a scheduler; {describe(pipe)}")
        level_resolver(self.scheduler)
        prediction_type(self.scheduler)
        adapter = find_adapter(pipe)
        self.mode = MODES[guidance.mode]
        self.denoiser: nn.Module = getattr(pipe, adapter.denoiser)
        self.decode = decoder_of(pipe, guidance.space)
        self.data_variance = guidance.data_variance or adapter.data_variance
        self.dropped = 0
        self._last_index: int | None = None
        self._held: tuple[Tensor, float] | None = None  # the latest shift, its step's posterior variance

        decoder = getattr(pipe, adapter.decoder) if adapter.decoder and guidance.space == "image" else None
        denoiser = self.denoiser if self.mode.needs_tape else None
        #: The networks that a gradient passes through.
        self.networks = [m for m in (guidance.reward, decoder, denoiser) if isinstance(m, nn.Module)]

    def enter_step(self, index: int, num_steps: int) -> bool:
        """Note that step ``index`` of ``num_steps`` begins; True if it is to be guided."""
        if self._last_index is None or index <= self._last_index:
            self._held = None
            self.guidance.start_run()
        self._last_index = index
        return self.guidance.start <= index / num_steps < self.guidance.stop

    def shift(self, prediction: Prediction, index: int, tape: DenoiserTape) -> Tensor:
        """Scaled shift of the clean sample predicted at step ``index``, (B, ...)."""
        variance = posterior_variance(prediction.level, self.data_variance)
        if self._held is None or index % self.guidance.every == 0:
            shift = self.mode.shift(prediction, self._reward_gradient, self.data_variance, tape)
            self._held = self._without_non_finite(shift), variance
            self.guidance.report.steps.append(index)
        shift, held_variance = self._held
        return self.guidance.scale * (variance / held_variance) * shift

    def _reward_gradient(self, x: Tensor) -> Tensor:
        """Gradient of each sample's reward at ``x``: of their sum, so that none depends on its neighbours."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            rewards = self.guidance.reward(self.decode(x))
            _check_rewards(rewards, len(x))
            (gradient,) = torch.autograd.grad(rewards.sum(), x)
        self.guidance.report.rewards.append(rewards.detach())
        return gradient

    def _without_non_finite(self, shift: Tensor) -> Tensor:
        finite = shift.flatten(1).isfinite().all(1)
        dropped = int((~finite).sum())
        self.dropped += dropped
        self.guidance.report.dropped += dropped
        return torch.where(finite.view(-1, *[1] * (shift.ndim - 1)), shift, 0)


class GuidedStep:
    """Stands in for ``scheduler.step`` while at least one guidance is attached."""

    def __init__(self, scheduler: Any) -> None:
        self.attachments: list[Attachment] = []
        self.tape = DenoiserTape(scheduler)
        self._scheduler = scheduler
        self._own_step = vars(scheduler).get("step")  # another library's wrapper, if any
        self._step = scheduler.step
        self._signature = inspect.signature(self._step)
        functools.update_wrapper(self, self._step)  # pipelines read the signature for `eta` and `generator`
        scheduler.step = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """``scheduler.step`` with a guided ``model_output``."""
        call = self._signature.bind(*args, **kwargs)
        try:
            call.arguments["model_output"] = self._guided(
                *(call.arguments[name] for name in ("model_output", "timestep", "sample"))
            )
        finally:
            self.tape.clear()
        return self._step(*call.args, **call.kwargs)

    def _guided(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor) -> Tensor:
        index, num_steps = step_index(self._scheduler, timestep), len(self._scheduler.timesteps)
        active = [a for a in self.attachments if a.enter_step(index, num_steps)]
        level = noise_level(self._scheduler, timestep)
        unguided = model_output.detach() if self.tape.inputs else model_output
        if not active or level.sigma == 0:
            return unguided
        if model_output.shape != sample.shape:
            raise ValueError(
                f"guidance expected a model output of the sample's shape {tuple(sample.shape)}, got "
                f"{tuple(model_output.shape)} at step {index}; predicted variances are not supported"
            )
        kind = prediction_type(self._scheduler)
        prediction = Prediction(model_output, timestep, sample, level, kind)
        self.tape.retain_graph = len(active) > 1
        # Every shift is computed from the unguided prediction: the order of the guidances does not matter.
        shifts = [a.shift(prediction, index, self.tape) for a in active]
        return kind.write_back(unguided, torch.stack(shifts).sum(0), level)

    def detach(self, attachment: Attachment) -> None:
        """Take one guidance away, and with the last of them this object itself."""
        self.attachments.remove(attachment)
        if not self.attachments and vars(self._scheduler).get("step") is self:
            del self._scheduler.step
            if self._own_step is not None:
                self._scheduler.step = self._own_step


@contextmanager
def _attached(attachment: Attachment, pipe: Any) -> Iterator["Guidance"]:
    guidance, scheduler = attachment.guidance, attachment.scheduler
    if guidance.scale == 0:
        guidance.start_run()
        yield guidance
        return
    with ExitStack() as stack:
        guided_step = scheduler.step if isinstance(scheduler.step, GuidedStep) else GuidedStep(scheduler)
        guided_step.attachments.append(attachment)
        stack.callback(guided_step.detach, attachment)
        stack.enter_context(_frozen(attachment.networks))
        if attachment.mode.needs_tape:
            stack.enter_context(guided_step.tape.watch(attachment.denoiser))
        yield guidance
    if attachment.dropped:
        warnings.warn(
            f"guidance left out {attachment.dropped} shifts that were not finite; these pictures were "
            "steered less. A reward, decoder or denoiser in float16 is the usual cause",
            stacklevel=3,
        )
    if pipe.scheduler is not scheduler:
        warnings.warn(
            f"the pipeline's scheduler was exchanged while guidance was attached to its "
            f"{type(scheduler).__name__}; the new one was not guided. Exchange it before attaching",
            stacklevel=3,
        )


@contextmanager
def _frozen(networks: list[nn.Module]) -> Iterator[None]:
    """Without this every weight on the gradient's way would have its activations kept."""
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _check_rewards(rewards: Any, batch: int) -> None:
    if not isinstance(rewards, Tensor) or rewards.shape != (batch,):
        found = tuple(rewards.shape) if isinstance(rewards, Tensor) else type(rewards).__name__
        raise ValueError(f"the reward must return one number a sample, shape ({batch},), got {found}")
    if not rewards.requires_grad:
        raise ValueError(
            "the reward must be differentiable in its input; the tensor it returned has no gradient (was it "
            "computed under torch.no_grad, detached, or taken through numpy or PIL?)"
        )
