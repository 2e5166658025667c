"""Generate images from prompts; each can be generated again from the record in its file.

:class:`~clip_guidance.generation.settings.GenerateSettings` is all that determines one image. The settings are stored
in the PNG beside the scores and the versions, and ``read_settings`` reads them back. Each image has a random generator
of its own, so that none depends on those that are made with it, but for rounding in a batch: the best of many
candidates is drawn again from its own seed alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import diffusers
import torch

from clip_guidance._tuned import TunedPair
from clip_guidance.clip.hub import packaged_models
from clip_guidance.generation.batch import check_size, in_batches
from clip_guidance.generation.best_of import Candidate, search
from clip_guidance.generation.candidates import BY_CLIP, BY_JUDGE, Candidates, Choice
from clip_guidance.generation.image import FailedImageError, GeneratedImage, failed
from clip_guidance.generation.models import Drawn, Models, draw_candidates
from clip_guidance.generation.pipelines import load_pipeline
from clip_guidance.generation.scorers import CLIPScorer, Rater, RewardScorer
from clip_guidance.generation.settings import JUDGES, SCHEDULERS, GenerateSettings
from clip_guidance.generation.steering import find_target
from clip_guidance.guidance.pairs import check_pair

__all__ = ["ImageGenerator", "generate"]


def generate(
    settings: Iterable[GenerateSettings],
    device: str | torch.device = "cpu",
    on_step: Callable[[], None] | None = None,
) -> Iterator[GeneratedImage]:
    """Generate an image for each of the settings, and score it with its guide and with a judge.

    Args:
        settings: One for each image.
        device: Where the models run.
        on_step: Called after every denoising step.

    Yields:
        Each image as soon as it is done.

    Raises:
        ValueError: A model is unknown, or a setting is out of range.

    Example:
        >>> (made,) = generate([GenerateSettings("a twemoji picture of a red apple", steps=2)])
        >>> made.image.size
        (64, 64)
        >>> [(score["model"], score["guided"]) for score in made.scores]
        [('emoji', True), ('emoji-judge', False)]
    """
    generator = ImageGenerator(device)
    for one in settings:
        yield generator(one, on_step)


class ImageGenerator:
    """Generate images, one by one or in batches, and keep the models of the latest ones loaded.

    Args:
        device: Where the models run.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = device
        self._pipeline = functools.lru_cache(maxsize=1)(_load_pipeline)
        self._scorer = functools.lru_cache(maxsize=3)(CLIPScorer.load)
        self._reward_scorer = functools.lru_cache(maxsize=8)(RewardScorer.load)

    def pipeline(self, settings: GenerateSettings) -> Any:
        """Return the pipeline for these settings; it is loaded unless the latest image used it."""
        return self._pipeline(settings.model, settings.scheduler, self.device)

    def check_tuned(self, pair: TunedPair, settings: GenerateSettings) -> None:
        """Refuse a pair that was tuned for other models than those of these settings.

        Raises:
            ValueError: It was, or a model is unknown.
        """
        check_pair(pair, self.pipeline(settings), self._scorer(settings.clip or settings.model, self.device).clip)

    def __call__(self, settings: GenerateSettings, on_step: Callable[[], None] | None = None) -> GeneratedImage:
        """Generate one image, and score it with its guide and with a judge.

        Args:
            settings: All that determines the image.
            on_step: Called after every denoising step.

        Raises:
            ValueError: A model is unknown, or a setting is out of range.
            FailedImageError: The image came out empty; another one is not touched by it.
        """
        (made,) = self.batch([settings], on_step)
        if isinstance(made, FailedImageError):
            raise made
        return made

    def batch(
        self, settings: Sequence[GenerateSettings], on_step: Callable[[], None] | None = None
    ) -> list[GeneratedImage | FailedImageError]:
        """Generate images together, and score each with its guide and with a judge.

        Args:
            settings: All that determines each image, of one :func:`~clip_guidance.generation.batch.shared`.
            on_step: Called after every denoising step, of all images.

        Returns:
            The images, or in the place of one that came out empty, the error that says why.

        Raises:
            ValueError: A model is unknown, or a setting is out of range.
        """
        batch = [one.resolved() for one in settings]
        models = self._models(batch[0])
        if batch[0].particles > 1:
            (one,) = batch
            made, choice = models.draw_particles(one, self._raters(one, BY_CLIP, models), on_step)
            return [made if isinstance(made, FailedImageError) else self._scored(models, made, one, choice=choice)]
        return [
            made if isinstance(made, FailedImageError) else self._scored(models, made, one, batch_size=len(batch))
            for made, one in zip(models.draw(batch, on_step), batch, strict=True)
        ]

    def _scored(self, models: Models, drawn: Drawn, one: GenerateSettings, **how: Any) -> GeneratedImage:
        device = str(self.device)
        return models.scored(GeneratedImage(drawn.image, one, device=device, calibrated=drawn.scale, **how))

    def load(self, settings: GenerateSettings) -> None:
        """Load the models of these settings, and refuse a size that the pipeline cannot draw.

        Raises:
            ValueError: A model is unknown, or the size does not fit.
        """
        self._models(settings.resolved())

    def ranked_by(self, one: GenerateSettings, rank_by: str) -> set[str]:
        """Return the fingerprints of what would rank the candidates of an image, of resolved settings."""
        return {each.record["fingerprint"] for each in self._raters(one, rank_by, self._models(one))}

    def best_of(
        self,
        settings: GenerateSettings,
        candidates: Candidates,
        on_step: Callable[[], None] | None = None,
        accelerator: Any = None,
        batch_size: int = 1,
    ) -> list[GeneratedImage]:
        """Generate candidates of one image, and return the best, each with the settings that draw it again.

        Args:
            settings: All that determines the first candidate; the next one has the next seed.
            candidates: How many there are, how many are kept, and what ranks them.
            on_step: Called after every denoising step of a candidate.
            accelerator: As for :func:`~clip_guidance.generation.best_of.best_of`: processes share the candidates.
            batch_size: Candidates that are drawn together; with several cutouts each is drawn alone.

        Returns:
            The best ones, best first; fewer than asked for where too many failed, which ``choice.failed`` names.

        Raises:
            ValueError: A model is unknown, a setting is out of range, nothing can rank the candidates, or they are
                asked for beside particles.
            FailedImageError: All of them came out empty, or none has a finite reward.
        """
        one, n = settings.resolved(), candidates.n
        if one.particles > 1:
            raise ValueError(f"give candidates or particles: got {n} candidates of {one.particles} particles each")
        replace(one, seed=one.seed + n - 1)  # raises where the last seed is out of range
        models = self._models(one)
        raters = self._raters(one, candidates.rank_by, models)

        def draw(seeds: range) -> list[list[Candidate]]:
            batches = in_batches((replace(one, seed=seed) for seed in seeds), batch_size, lambda each: each)
            return [[each for batch in batches for each in draw_candidates(batch, models, raters, on_step)]]

        (found,) = search(draw, range(one.seed, one.seed + n), batch_size, accelerator)
        if not found.images:
            first = found.failed[0]
            raise failed(one, f"has no candidate: all {n} failed, that of seed {first.seed} {first.reason}")
        ranked = list(zip(found.images, found.rewards, found.seeds, strict=True))[: candidates.keep]
        unranked = [asdict(each) for each in found.failed]
        kept = []
        for rank, (drawn, reward, seed) in enumerate(ranked, 1):
            choice = Choice(n, one.seed, rank, reward, [each.record for each in raters], unranked)
            kept.append(self._scored(models, drawn, replace(one, seed=seed), choice=choice))
        return kept

    def _models(self, one: GenerateSettings) -> Models:
        """Load all models before an image is generated, since loading may fail."""
        pipe = self.pipeline(one)  # first, since an unknown model is the most likely mistake
        check_size(pipe, one)
        names = _clip_name(one), one.judge or JUDGES.get(one.model)
        guide, judge = (self._scorer(name, self.device) if name else None for name in names)
        return Models(pipe, guide, judge, [self._reward_scorer(each.name, self.device) for each in one.rewards])

    def _raters(self, one: GenerateSettings, rank_by: str, models: Models) -> list[Rater]:
        """Return what ranks the candidates of an image, by the sum of the ratings.

        Raises:
            ValueError: There is no such CLIP or reward.
        """
        if rank_by == BY_CLIP and not models.guide:
            steering = zip(one.rewards, models.rewards, strict=True)
            if raters := [scorer.rater(one.target, each.weight) for each, scorer in steering]:
                return raters
        clips = {BY_CLIP: models.guide, BY_JUDGE: models.judge}
        if rank_by not in clips and rank_by not in packaged_models():
            return [self._reward_scorer(rank_by, self.device).rater(one.target)]
        clip = clips[rank_by] if rank_by in clips else self._scorer(rank_by, self.device)
        if clip is None:
            raise ValueError(f"{one.model} comes without a {rank_by} to rank its candidates: name a CLIP or a reward")
        away = rank_by == BY_CLIP and (one.scale or 0.0) < 0  # what is steered away from ranks last
        return [clip.rater(find_target(one), -1.0 if away else 1.0)]


def _load_pipeline(model: str, scheduler: str | None, device: str | torch.device) -> Any:
    pipe = load_pipeline(model, device)
    pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        name, changes = SCHEDULERS[scheduler]
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **changes)
    return pipe


def _clip_name(settings: GenerateSettings) -> str | None:
    """Return the name of the CLIP that steers and scores; None where the settings need none."""
    if settings.clip or settings.model in packaged_models():
        return settings.clip or settings.model
    if settings.scale != 0:
        raise ValueError(f"the pipeline {settings.model} comes without a CLIP: name the one that steers it (clip)")
    return None
