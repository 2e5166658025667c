"""The models that draw and score an image, and what they make of a batch of settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from clip_guidance.generation.batch import draw_batch
from clip_guidance.generation.best_of import Candidate
from clip_guidance.generation.candidates import Choice
from clip_guidance.generation.image import FailedImageError, GeneratedImage, failed
from clip_guidance.generation.scorers import CLIPScorer, Rater, RewardScorer
from clip_guidance.generation.settings import GenerateSettings
from clip_guidance.generation.steering import make_guidance
from clip_guidance.guidance import WeightedRewards
from clip_guidance.guidance.particles import Particles


@dataclass(frozen=True)
class Drawn:
    """An image, and the strength that was calibrated as it was drawn; None where that was given."""

    image: Image.Image
    scale: float | None


@dataclass(frozen=True)
class Models:
    """The models that draw and score an image; None where there is none."""

    pipe: Any
    guide: CLIPScorer | None
    judge: CLIPScorer | None
    rewards: list[RewardScorer]

    def draw(
        self, batch: Sequence[GenerateSettings], on_step: Callable[[], None] | None
    ) -> list[Drawn | FailedImageError]:
        """Draw images together; in the place of one that came out empty is the error that says why."""
        clip, rewards = self.guide.clip if self.guide else None, [each.reward for each in self.rewards]
        guidance = make_guidance(clip, rewards, batch)
        try:
            images = draw_batch(self.pipe, guidance, batch, on_step)
        except FailedImageError as error:  # the only image, before its last step
            return [error]
        found = guidance.report.calibrated if guidance else None  # of each particle where there are any
        scales = [None] * len(images) if found is None or len(found) != len(images) else found.tolist()
        return [
            image if isinstance(image, FailedImageError) else Drawn(image, scale)
            for image, scale in zip(images, scales, strict=True)
        ]

    def draw_particles(
        self, settings: GenerateSettings, raters: Sequence[Rater], on_step: Callable[[], None] | None
    ) -> tuple[Drawn | FailedImageError, Choice | None]:
        """Draw the best of the particles that travel together."""
        k = settings.particles
        replace(settings, seed=settings.seed + k - 1)  # raises where the last seed is out of range
        reward = WeightedRewards([(each.weight, each.reward) for each in raters])
        with Particles(reward, k, seed=settings.seed).attach(self.pipe) as particles:
            (image,) = self.draw([settings], on_step)
        if isinstance(image, FailedImageError):
            return image, None
        assert particles.result is not None  # the run came to its end
        best = particles.result.rewards[0, 0].item()
        if not math.isfinite(best):
            return failed(settings, f"has the reward {best}"), None
        return image, Choice(k, settings.seed, 1, best, [each.record for each in raters])

    def scored(self, generated: GeneratedImage) -> GeneratedImage:
        """Complete the record of an image: what steered it, and its scores."""
        if self.guide and generated.settings.scale != 0:
            generated.guide = {"name": self.guide.record["model"], "fingerprint": self.guide.record["fingerprint"]}
        generated.scores = [each.score(generated) for each in (self.guide, self.judge, *self.rewards) if each]
        return generated


def draw_candidates(
    batch: Sequence[GenerateSettings], models: Models, raters: Sequence[Rater], on_step: Callable[[], None] | None
) -> list[Candidate]:
    """Draw and rate images; one that came out empty, or has no finite reward, is not ranked."""

    def rated(one: GenerateSettings, drawn: Drawn | FailedImageError) -> Candidate:
        if isinstance(drawn, FailedImageError):
            return Candidate(None, math.nan, one.seed, drawn.reason)
        reward = sum(rater(drawn.image) for rater in raters)
        return Candidate(drawn, reward, one.seed, "" if math.isfinite(reward) else f"has the reward {reward}")

    return [rated(one, drawn) for one, drawn in zip(batch, models.draw(batch, on_step), strict=True)]
