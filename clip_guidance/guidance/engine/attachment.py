"""One guidance on one pipeline: what is known of the pipeline, and what is remembered during a run."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clip_guidance.guidance.adapters.call_stack import PIPELINES, Run
from clip_guidance.guidance.adapters.noise_level import level_resolver
from clip_guidance.guidance.adapters.pipelines import check_exact, describe, find_adapter
from clip_guidance.guidance.adapters.prediction import Prediction, prediction_type
from clip_guidance.guidance.engine.cap import Corrections, capped
from clip_guidance.guidance.engine.decoder import Decoder
from clip_guidance.guidance.engine.gradient import RewardGradient, reward_gradient
from clip_guidance.guidance.engine.tape import DenoiserTape, check_recordable
from clip_guidance.guidance.modes.base import find_mode
from clip_guidance.guidance.modes.x0 import posterior_variance

if TYPE_CHECKING:
    from clip_guidance.guidance.guidance import Guidance


class Attachment:
    """What one guidance needs to steer one pipeline.

    Raises:
        UnsupportedSchedulerError: The scheduler's noise levels are not known, or the mode is not defined for it.
        ValueError: ``pipe`` has no scheduler or denoiser, or its samples cannot be decoded or not recorded.
    """

    def __init__(self, guidance: "Guidance", pipe: Any) -> None:
        self.guidance = guidance
        self.pipe = pipe
        self.scheduler: Any = getattr(pipe, "scheduler", None)
        if self.scheduler is None:
            raise ValueError(f"guidance needs a pipeline with a scheduler; {describe(pipe)}")
        level_resolver(self.scheduler)
        prediction_type(self.scheduler)
        adapter = find_adapter(pipe)
        self.mode = find_mode(guidance.mode)
        self.mode.check(self.scheduler)
        self.doubled, self.repainted = adapter.doubled, adapter.repainted
        self.denoisers = _modules(pipe, adapter.denoiser, f"{adapter.denoiser}_2")
        #: What reads the noisy sample besides: "exact" differentiates through these too.
        self.readers = [*self.denoisers, *_modules(pipe, "controlnet")]
        self.decoder = Decoder(pipe, guidance.space, guidance.decoding)
        self.data_variance = guidance.data_variance or adapter.data_variance
        #: Whether the denoiser's outputs must be watched, for the correction of classifier-free guidance.
        self.needs_correction = self.mode.needs_correction or guidance.cap is not None
        self.dropped = 0
        self._last_index: int | None = None
        self._held: tuple[Tensor, float] | None = None  # the latest shift, its step's posterior variance
        if self.mode.needs_tape:
            check_exact(pipe)
            check_recordable(self.scheduler)
        taped = self.readers if self.mode.needs_tape else []
        #: The networks that a gradient passes through.
        self.networks = [m for m in (guidance.reward, self.decoder.module, *taped) if isinstance(m, nn.Module)]

    def owns(self, run: Run | None) -> bool:
        """Whether what is running is the pipeline that this guidance is attached to, or a loop written by hand."""
        return run is None or run.pipe is self.pipe or not isinstance(self.pipe, PIPELINES)

    def enter_step(self, index: int, done: float) -> bool:
        """Note that step ``index``, before which this fraction of the run is done, begins; True if it is guided."""
        if self._last_index is None or index <= self._last_index:
            self._held = None
            self.decoder.start_run()
            self.guidance.start_run()
        self._last_index = index
        return self.guidance.acts(done)

    def shift(
        self, prediction: Prediction, index: int, done: float, run: Run | None, tape: DenoiserTape, seen: Corrections
    ) -> Tensor:
        """Scaled shift of the clean sample predicted at step ``index``, (B, ...)."""
        guidance, report = self.guidance, self.guidance.report
        if self.needs_correction:
            prediction = replace(prediction, correction=seen.rms(prediction))
        strength = guidance.strength(done, len(prediction.sample))
        prediction = replace(prediction, strength=strength)
        variance = posterior_variance(prediction.level, self.data_variance)
        if self._held is None or index % guidance.every == 0:

            def gradient(x0: Tensor) -> RewardGradient:
                found = reward_gradient(guidance.reward, self.decoder, x0, run.size if run else None)
                if len(report.rewards) == len(report.steps):  # the first of those that a method asks for in a step
                    report.rewards.append(found.rewards)
                return found

            shift = self.mode.shift(prediction, gradient, self.data_variance, tape)
            self._held = self._without_non_finite(shift), variance
            report.steps.append(index)
        shift, held_variance = self._held
        strength = strength.to(shift).view(-1, *[1] * (shift.ndim - 1))
        shift = (variance / held_variance) * strength * shift
        return self._capped(shift, prediction.correction, variance)

    def _capped(self, shift: Tensor, correction: Tensor | None, variance: float) -> Tensor:
        cap = self.guidance.cap
        if cap is None:
            return shift
        limit = shift.new_full((len(shift),), math.sqrt(variance)) if correction is None else correction.to(shift)
        found = capped(shift, cap * limit)
        self.guidance.report.capped += found.count
        return found.shift

    def _without_non_finite(self, shift: Tensor) -> Tensor:
        finite = shift.flatten(1).isfinite().all(1)
        dropped = int((~finite).sum())
        self.dropped += dropped
        self.guidance.report.dropped += dropped
        return torch.where(finite.view(-1, *[1] * (shift.ndim - 1)), shift, 0)


def _modules(pipe: Any, *names: str) -> list[nn.Module]:
    found = (getattr(pipe, name, None) for name in names)
    return [module for module in found if isinstance(module, nn.Module)]
