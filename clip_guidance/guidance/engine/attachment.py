"""One guidance on one pipeline: its facts, and what it remembers during a run."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clip_guidance._tensors import per_sample
from clip_guidance.guidance.adapters.call_stack import PipelineCall
from clip_guidance.guidance.adapters.noise_level import shared_timestep
from clip_guidance.guidance.adapters.pipelines import check_exact
from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.adapters.schedulers import count_steps, fraction_done
from clip_guidance.guidance.engine.cap import Corrections
from clip_guidance.guidance.engine.damping import damped
from clip_guidance.guidance.engine.decoder import Decoder
from clip_guidance.guidance.engine.gradient import reward_gradient
from clip_guidance.guidance.engine.host import resolve
from clip_guidance.guidance.engine.tape import DenoiserTape, check_recordable
from clip_guidance.guidance.modes import RewardGradient, StepState, find_mode
from clip_guidance.guidance.modes.noisy import Noisy
from clip_guidance.guidance.modes.x0 import posterior_variance
from clip_guidance.guidance.options import GuidanceOptions
from clip_guidance.guidance.per_sample import are_finite, capped


@dataclass(frozen=True)
class Step:
    """Hold what all guidances share at one step.

    Attributes:
        prediction: The unguided model output, and what it says about x₀.
        timestep: The timestep of the step.
        eta: η that goes into the scheduler's step.
        index: Position of the step in the run.
        call: The pipeline's call that the step belongs to; None in a loop written by hand.
        tape: The recorded forwards of the denoiser.
        corrections: The denoiser's outputs.
    """

    prediction: Prediction
    timestep: float | Tensor
    eta: float
    index: int
    call: PipelineCall | None
    tape: DenoiserTape
    corrections: Corrections


@dataclass
class Run:
    """Hold where a run of the pipeline is.

    Attributes:
        first: Position of its first step in the scheduler's timesteps.
        count: Number of its steps; None if it goes to the end of the timesteps.
        index: Position of the latest step in the scheduler's timesteps.
        done: Fraction of the run that is done before that step, in [0, 1).
        guided: Whether a step was guided.
        moved: Whether a shift was other than zero, or was left out.
    """

    first: int
    count: int | None
    index: int
    done: float = 0.0
    guided: bool = False
    moved: bool = False


class Attachment:
    """Hold what one guidance needs to steer one pipeline.

    Args:
        guidance: The guidance's options.
        pipe: The pipeline.

    Raises:
        UnsupportedSchedulerError: The scheduler's noise levels are not known, or the mode is not defined for it.
        ValueError: ``pipe`` has no scheduler or denoiser, or its samples cannot be decoded or not recorded.
    """

    def __init__(self, guidance: GuidanceOptions, pipe: Any) -> None:
        self.guidance = guidance
        self.host = resolve(pipe)
        self.mode = find_mode(guidance.mode)
        self.mode.check(self.host.scheduler)
        if isinstance(self.mode, Noisy):
            self.mode = self.mode.fitted(pipe, guidance.reward)
        self.decoder = Decoder(pipe, guidance.space, guidance.decoding, self.host.adapter, guidance.to_image)
        self.data_variance = guidance.data_variance or self.host.adapter.data_variance
        #: Whether the denoiser's outputs must be watched, for the correction of classifier-free guidance.
        self.needs_correction = self.mode.needs_correction or guidance.cap is not None
        #: Who attached the guidance, as :func:`~clip_guidance.guidance.engine.threads.enter` notes it.
        self.origin: Any = None
        self.report = guidance.report
        self.dropped = 0
        self._told: set[str] = set()  # what was warned of, by its kind
        #: Whether another pipeline that shares the scheduler took a step.
        self.passed_by = False
        self._run: Run | None = None
        self._idle: Run | None = None  # the latest run that guidance left as it was
        self._held: tuple[Tensor, float] | None = None  # the latest shift, and its step's posterior variance
        if self.mode.needs_tape:
            check_exact(pipe)
            check_recordable(self.host.scheduler)
        #: The networks whose forwards are recorded: "exact" differentiates through all that read the noisy sample.
        self.recorded = self.host.readers if self.mode.needs_tape else []
        tower = getattr(self.mode, "tower", None)
        found = guidance.reward, guidance.to_image, self.decoder.module, tower, *self.recorded
        #: The networks that a gradient passes through.
        self.networks = [m for m in found if isinstance(m, nn.Module)]

    def applies_to(self, call: PipelineCall | None) -> bool:
        """Return whether ``call`` is one of this guidance's pipeline, or a loop written by hand."""
        return self.host.is_called(call)

    def begin_step(self, index: int, call: PipelineCall | None) -> bool:
        """Begin a step; return whether it is guided.

        Args:
            index: Position of the step in the scheduler's timesteps; one that does not rise begins another run.
            call: The pipeline's call that the step belongs to; None in a loop written by hand.
        """
        scheduler = self.host.scheduler
        if self._run is None or index <= self._run.index:
            self._end_run()
            self._held = None
            self.decoder.start_run()
            self.report = self.guidance.start_run()
            self._run = Run(index, count_steps(scheduler, call.timesteps if call else None, index), index)
        self._run.index = index
        self._run.done = fraction_done(scheduler, index, self._run.first, self._run.count)
        return self.guidance.is_active(self._run.done)

    def _end_run(self) -> None:
        if self._run is not None and not self._run.moved:
            self._idle = self._run
        self._run = None

    def why_unguided(self) -> str | None:
        """End the latest run; say why guidance left a run as it was; None if it did so with none."""
        has_run = self._run is not None
        self._end_run()
        guidance, run = self.guidance, self._idle
        if run is not None and run.guided:
            return (
                "guidance changed nothing in a run: the reward's gradient, or the mode's step size, was zero at each "
                "step. A reward that is constant there, or a relative step size in a run of one step, is the cause"
            )
        if run is not None:
            schedule = "" if guidance.schedule is None else " and the schedule"
            return (
                f"guidance steered no step of a run: start={guidance.start}, stop={guidance.stop}{schedule} leave none "
                "of its steps. Widen them, or take more steps"
            )
        if self.passed_by and not has_run:
            return (
                f"guidance was attached to a {type(self.host.pipe).__name__} that took no step, while another pipeline "
                "ran that shares its scheduler. Attach to the pipeline that is called"
            )
        return None

    def shift(self, step: Step) -> Tensor:
        """Compute the scaled shift of the predicted clean sample, (B, ...)."""
        guidance, prediction = self.guidance, step.prediction
        sound = self._sound(step)
        correction = step.corrections.rms(prediction) if self.needs_correction else None
        assert self._run is not None  # begin_step comes first
        self._run.guided = True
        scale = guidance.strength(self._run.done, len(prediction.sample))
        variance = posterior_variance(prediction.level, self.data_variance)
        shape = prediction.sample.shape  # ChronoEdit drops frames on the way
        if self._held is None or step.index % guidance.every == 0 or self._held[0].shape != shape:
            state = self._state(step, scale, correction)
            self._held = self._without_non_finite(self.mode.shift(state), sound), variance
            self.report.steps.append(step.index)
        shift, held_variance = self._held
        shift = (variance / held_variance) * per_sample(scale.to(shift), shift) * shift
        self._run.moved = self._run.moved or self.report.dropped > 0 or bool(shift.any()) or not scale.any()
        return self._capped(damped(shift, scale, guidance.damping or 0.0, variance), correction, variance)

    def _state(self, step: Step, scale: Tensor, correction: Tensor | None) -> StepState:
        report = self.report

        def note(rewards: Tensor) -> None:
            if len(report.rewards) == len(report.steps):  # a method may ask for several in a step; the first is noted
                report.rewards.append(rewards)

        def gradient(x0: Tensor) -> RewardGradient:
            found = reward_gradient(self.guidance.reward, self.decoder, x0, step.call)
            note(found.rewards)
            report.decoding = self.decoder.choice
            return found

        return StepState(
            prediction=step.prediction,
            timestep=step.timestep,
            scheduler=self.host.scheduler,
            scale=scale,
            data_variance=self.data_variance,
            reward_gradient=gradient,
            vjp=partial(step.tape.vjp, step.prediction),
            eta=step.eta,
            correction=correction,
            tell=self._tell,
            reward=self.guidance.reward,
            note=note,
        )

    def _tell(self, message: str, kind: str | None = None) -> None:
        """Warn, once of each kind: by default of each text."""
        if (kind or message) not in self._told:
            self._told.add(kind or message)
            warnings.warn(message, stacklevel=3)

    def _sound(self, step: Step) -> Tensor:
        """Return which noisy samples are finite, (B,); warn of the first step at which some are not."""
        sound = are_finite(step.prediction.sample)
        if not sound.all():
            self._tell(
                f"{int((~sound).sum())} of {len(sound)} noisy samples are not finite at step {step.index} (timestep "
                f"{float(shared_timestep(step.timestep)):g}), before guidance: the scheduler or the denoiser made them "
                "so at the step before, and their images are lost. A denoiser in float16, or rounding in a scheduler "
                "with eta=1, is the usual cause",
                kind="samples",
            )
        return sound

    def _capped(self, shift: Tensor, correction: Tensor | None, variance: float) -> Tensor:
        cap = self.guidance.cap
        if cap is None:
            return shift
        limit = shift.new_full((len(shift),), math.sqrt(variance)) if correction is None else correction.to(shift)
        found = capped(shift, cap * limit)
        self.report.capped += found.count
        return found.shift

    def take_rows(self, parents: Tensor) -> None:
        """Follow the samples, (B,), that have taken the place of others after a step."""
        if self._held is not None:
            self._held = self._held[0][parents.to(self._held[0].device)], self._held[1]

    def _without_non_finite(self, shift: Tensor, sound: Tensor) -> Tensor:
        finite = are_finite(shift)
        self.dropped += int((~finite & sound).sum())
        self.report.dropped += int((~finite).sum())
        return torch.where(per_sample(finite, shift), shift, 0)


def warn_of_unguided(attachments: Sequence[Attachment], stacklevel: int) -> None:
    """Warn once where a run, or a whole ``with`` block, went by without a guided step."""
    for why in dict.fromkeys(filter(None, [attachment.why_unguided() for attachment in attachments])):
        warnings.warn(why, stacklevel=stacklevel + 1)


def warn_of_dropped(attachments: Sequence[Attachment], stacklevel: int) -> None:
    """Warn once of all shifts that were left out because they were not finite."""
    dropped = sum(attachment.dropped for attachment in attachments)
    if dropped:
        warnings.warn(
            f"guidance left out {dropped} shifts that were not finite; these images were steered less. A "
            "reward, decoder or denoiser in float16 is the usual cause",
            stacklevel=stacklevel + 1,
        )
