"""One guidance on one pipeline: its facts, and what it remembers during a run."""

import math
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
from clip_guidance.guidance.engine.calibration import Calibration
from clip_guidance.guidance.engine.cap import Corrections
from clip_guidance.guidance.engine.damping import damped
from clip_guidance.guidance.engine.decoder import Decoder
from clip_guidance.guidance.engine.gradient import reward_gradient
from clip_guidance.guidance.engine.runs import BaseAttachment, Run
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


class Attachment(BaseAttachment):
    """Hold what one guidance needs to steer one pipeline.

    Args:
        guidance: The guidance's options.
        pipe: The pipeline, or what is known of it.

    Raises:
        UnsupportedSchedulerError: The scheduler's noise levels are not known, or the mode is not defined for it.
        ValueError: ``pipe`` has no scheduler or denoiser, or its samples cannot be decoded or not recorded.
    """

    def __init__(self, guidance: GuidanceOptions, pipe: Any) -> None:
        super().__init__(guidance, pipe)
        pipe = self.host.pipe
        self.guidance = guidance
        self.defaults = guidance.defaults_for(pipe)
        self.mode = find_mode(guidance.mode or self.defaults.mode)
        self.mode.check(self.host.scheduler)
        if isinstance(self.mode, Noisy):
            self.mode = self.mode.fitted(pipe, guidance.reward)
        self.decoder = Decoder(pipe, guidance.space, guidance.decoding, self.host.adapter, guidance.to_image)
        self.data_variance = guidance.data_variance or self.host.adapter.data_variance
        self._calibration = Calibration() if guidance.scale is None and self.defaults.scale is None else None
        self.needs_outputs = (
            self.mode.needs_correction or guidance.cap is not None or self._calibration is not None
        )
        self.report = guidance.report
        self._held: tuple[Tensor, float] | None = None  # the latest shift, and its step's posterior variance
        if self.mode.needs_tape:
            check_exact(pipe)
            check_recordable(self.host.scheduler)
            self.recorded = self.host.readers  # "exact" differentiates through all that read the noisy sample
        tower = getattr(self.mode, "tower", None)
        found = guidance.reward, guidance.to_image, self.decoder.module, tower, *self.recorded
        self.networks = [m for m in found if isinstance(m, nn.Module)]

    def _start_run(self, call: PipelineCall | None) -> None:
        self._held = None
        self._calibration = self._calibration and Calibration()
        self.decoder.start_run()

    def _is_active(self, fraction: float) -> bool:
        return self.guidance.is_active(fraction, self.defaults)

    @property
    def _window(self) -> tuple[float, float]:
        return self.guidance.window(self.defaults)

    def _why(self, run: Run) -> str:
        if run.acted:
            return (
                "guidance changed nothing in a run: the reward's gradient, or the mode's step size, was zero at each "
                "step. A reward that is constant there, or a relative step size in a run of one step, is the cause"
            )
        return super()._why(run)

    def shift(self, step: Step) -> Tensor:
        """Compute the scaled shift of the predicted clean sample, (B, ...)."""
        guidance, prediction = self.guidance, step.prediction
        sound = self._sound(step)
        correction = step.corrections.rms(prediction) if self.needs_outputs else None
        assert self._run is not None  # begin_step comes first
        self._run.acted = True
        scale = guidance.strength(self._run.done, len(prediction.sample), self.defaults)
        variance = posterior_variance(prediction.level, self.data_variance)
        shape = prediction.sample.shape  # ChronoEdit drops frames on the way
        if self._held is None or step.index % guidance.every == 0 or self._held[0].shape != shape:
            state = self._state(step, scale, correction)
            self._held = self._without_non_finite(self.mode.shift(state), sound), variance
            self.report.steps.append(step.index)
        shift, held_variance = self._held
        asked = scale
        if self._calibration is not None:
            found = self._calibration.update((variance / held_variance) * shift, correction, variance)
            scale = scale.to(found) * found
            self.report.calibrated = found
        shift = (variance / held_variance) * per_sample(scale.to(shift), shift) * shift
        self._run.moved = self._run.moved or self.report.dropped > 0 or bool(shift.any()) or not asked.any()
        damping = self.defaults.damping if guidance.damping is None else guidance.damping
        return self._capped(damped(shift, scale, damping, variance), correction, variance)

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
        if self._calibration is not None:
            self._calibration.take_rows(parents)

    def _without_non_finite(self, shift: Tensor, sound: Tensor) -> Tensor:
        finite = are_finite(shift)
        self.dropped += int((~finite & sound).sum())
        self.report.dropped += int((~finite).sum())
        return torch.where(per_sample(finite, shift), shift, 0)
