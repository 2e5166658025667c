"""Choose the classifier-free scale at a step: the one whose predicted clean sample the reward likes best.

    s*  =  argmax over s of r(x̂₀(s)),    x̂₀(s) that of the model output which the pipeline makes with scale s

Both predictions are there already (:mod:`.combination`), so that a candidate costs a decode and a pass through the
reward, without gradients, and nothing of the denoiser.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from clip_guidance._tensors import per_sample
from clip_guidance.guidance.adapters.call_stack import PipelineCall
from clip_guidance.guidance.decoding import Decoding
from clip_guidance.guidance.engine.attachment import Step
from clip_guidance.guidance.engine.combination import Combination, find_combination
from clip_guidance.guidance.engine.decoder import Decoder
from clip_guidance.guidance.engine.rating import Rater
from clip_guidance.guidance.engine.runs import BaseAttachment, Options
from clip_guidance.rewards.protocol import Reward


@dataclass
class ScaleReport:
    """Record which scales were chosen in the latest run of the pipeline.

    Attributes:
        steps: Index of every step at which scales were chosen.
        chosen: At each of these steps, the scale of each image, (B,).
        own: At each of these steps, the scale that the pipeline itself used, (B,).
        rewards: At each of these steps, the reward of each of the S scales for each image, (S, B); NaN where the image
            was not finite.

    Example:
        >>> import clip_guidance as cg
        >>> cg.AdaptiveCFG(lambda images: images.mean((1, 2, 3))).report  # before the first run
        ScaleReport(steps=[], chosen=[], own=[], rewards=[])
    """

    steps: list[int] = field(default_factory=list)
    chosen: list[Tensor] = field(default_factory=list)
    own: list[Tensor] = field(default_factory=list)
    rewards: list[Tensor] = field(default_factory=list)


class ScaleOptions(Options, Protocol):
    """What a user has set; :class:`~clip_guidance.guidance.AdaptiveCFG` documents it."""

    reward: Reward
    scales: tuple[float, ...]
    space: str
    decoding: Decoding | str | None
    to_image: Callable[[Tensor], Tensor] | None


class ScaleChoice(BaseAttachment):
    """Choose the scale of one pipeline's steps.

    Args:
        options: What the user has set.
        pipe: The pipeline.

    Raises:
        UnsupportedSchedulerError: The scheduler's noise levels are not known.
        ValueError: ``pipe`` has no scheduler or denoiser, or its samples cannot be decoded.
    """

    needs_outputs = True
    _name, _verb = "AdaptiveCFG", "chose a scale at"

    def __init__(self, options: ScaleOptions, pipe: Any) -> None:
        super().__init__(options, pipe)
        self.options = options
        decoder = Decoder(pipe, options.space, options.decoding, self.host.adapter, options.to_image)
        self._rater = Rater(options.reward, decoder, batch_size=1)

    def _start_run(self, call: PipelineCall | None) -> None:
        self._rater.start_run(call)

    def choose(self, step: Step) -> Tensor:
        """Return the model output of the scale that is best for each image, (B, ...).

        Raises:
            ValueError: The step has not the two predictions of classifier-free guidance.
        """
        prediction, scales = step.prediction, self.options.scales
        combination = self._combination(step)
        if combination is None:
            return prediction.model_output
        assert self._run is not None  # begin_step comes first
        self._run.acted = self._run.moved = True
        outputs = [combination.at(scale) for scale in scales]
        rewards = self._rater.versions([replace(prediction, model_output=each).x0 for each in outputs], step.call)
        own = combination.scale.cpu()
        rated = rewards.isfinite().any(0)
        best = _best(rewards, scales, own)
        if not rated.all():
            self._tell(
                f"AdaptiveCFG found no finite reward for {int((~rated).sum())} of {len(rated)} images at step "
                f"{step.index}, with none of its scales; these keep the pipeline's own",
                kind="not finite",
            )
        self.report.steps.append(step.index)
        self.report.own.append(own)
        self.report.chosen.append(torch.where(rated, torch.tensor(scales)[best], own))
        self.report.rewards.append(rewards)
        chosen = prediction.model_output
        for index, output in enumerate(outputs):
            is_best = ((best == index) & rated).to(chosen.device)
            chosen = torch.where(per_sample(is_best, chosen), output, chosen)
        return chosen

    def _combination(self, step: Step) -> Combination | None:
        """Find the two predictions; None in a step without guidance of a run that has it in others."""
        output = step.prediction.model_output
        found, name = step.corrections.predictions(output), type(self.host.denoisers[0]).__name__
        if len(found) == 1 and self.report.steps:
            return None
        if len(found) != 2:
            raise ValueError(
                f"AdaptiveCFG needs two predictions, with and without the prompt; {name} made {len(found)} at step "
                f"{step.index}. Turn classifier-free guidance on (guidance_scale or true_cfg_scale above 1), and no "
                "other; a guidance-distilled model has none"
            )
        combination = find_combination(output, (found[0], found[1]))
        if combination is None:
            raise ValueError(
                f"AdaptiveCFG expected u + s·(c − u) of the two predictions of {name}, rescaled or not; at step "
                f"{step.index} {type(self.host.pipe).__name__} combined them by another rule, or one that clips"
            )
        return combination


def _best(rewards: Tensor, scales: tuple[float, ...], own: Tensor) -> Tensor:
    """Return the index (B,) of each image's best scale; of equal ones, of the nearest to the pipeline's own."""
    rewards = torch.where(rewards.isfinite(), rewards, -torch.inf)
    distance = (torch.tensor(scales)[:, None] - own).abs().nan_to_num(0.0)
    return torch.where(rewards == rewards.amax(0), distance, torch.inf).argmin(0)
