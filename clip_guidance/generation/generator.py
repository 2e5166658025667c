"""Generate images from prompts; each can be generated again from the record in its file.

:class:`~clip_guidance.generation.settings.GenerateSettings` is all that determines one image. The settings are stored
in the PNG beside the scores and the versions, and ``read_settings`` reads them back. Images are generated one at a
time, each with a random generator of its own, so that no image depends on how many are made with it: the best of many
candidates is drawn again from its own seed alone.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import diffusers
import torch
from PIL import Image

from clip_guidance.clip import DualEncoder
from clip_guidance.clip.hub import packaged_models
from clip_guidance.clip.tokenizer import warn_truncated
from clip_guidance.generation.best_of import Candidate, search
from clip_guidance.generation.candidates import BY_CLIP, BY_JUDGE, Candidates, Choice
from clip_guidance.generation.image import FailedImageError, GeneratedImage, check_image, failed
from clip_guidance.generation.pipelines import load_pipeline
from clip_guidance.generation.scorers import CLIPScorer, Rater, RewardScorer
from clip_guidance.generation.settings import JUDGES, SCHEDULERS, GenerateSettings
from clip_guidance.generation.targets import ImageFile
from clip_guidance.guidance import CLIPGuidance, Guidance, Region, WeightedRewards
from clip_guidance.images.load import load_image
from clip_guidance.rewards import PromptReward

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
    """Generate one image at a time, and keep the models of the latest ones loaded.

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

    def __call__(self, settings: GenerateSettings, on_step: Callable[[], None] | None = None) -> GeneratedImage:
        """Generate one image, and score it with its guide and with a judge.

        Args:
            settings: All that determines the image.
            on_step: Called after every denoising step.

        Raises:
            ValueError: A model is unknown, or a setting is out of range.
            FailedImageError: The image came out empty; another one is not touched by it.
        """
        one = settings.resolved()
        models = self._models(one)
        return models.scored(GeneratedImage(models.draw(one, on_step), one, device=str(self.device)))

    def best_of(
        self,
        settings: GenerateSettings,
        candidates: Candidates,
        on_step: Callable[[], None] | None = None,
        accelerator: Any = None,
    ) -> list[GeneratedImage]:
        """Generate candidates of one image, and return the best, each with the settings that draw it again.

        Args:
            settings: All that determines the first candidate; the next one has the next seed.
            candidates: How many there are, how many are kept, and what ranks them.
            on_step: Called after every denoising step of a candidate.
            accelerator: As for :func:`~clip_guidance.generation.best_of.best_of`: processes share the candidates.

        Returns:
            The best ones, best first; fewer than asked for where too many failed, which ``choice.failed`` names.

        Raises:
            ValueError: A model is unknown, a setting is out of range, or nothing can rank the candidates.
            FailedImageError: All of them came out empty, or none has a finite reward.
        """
        one, n = settings.resolved(), candidates.n
        replace(one, seed=one.seed + n - 1)  # raises where the last seed is out of range
        models = self._models(one)
        raters = self._raters(one, candidates.rank_by, models)

        def draw(seeds: range) -> list[list[Candidate]]:
            return [[_candidate(replace(one, seed=seed), models, raters, on_step) for seed in seeds]]

        (found,) = search(draw, range(one.seed, one.seed + n), accelerator=accelerator)
        if not found.images:
            first = found.failed[0]
            raise failed(one, f"has no candidate: all {n} failed, that of seed {first.seed} {first.reason}")
        ranked = list(zip(found.images, found.rewards, found.seeds, strict=True))[: candidates.keep]
        unranked = [asdict(each) for each in found.failed]
        kept = []
        for rank, (image, reward, seed) in enumerate(ranked, 1):
            choice = Choice(n, one.seed, rank, reward, [each.record for each in raters], unranked)
            kept.append(GeneratedImage(image, replace(one, seed=seed), device=str(self.device), choice=choice))
        return [models.scored(each) for each in kept]

    def _models(self, one: GenerateSettings) -> _Models:
        """Load all models before an image is generated, since loading may fail."""
        pipe = self.pipeline(one)  # first, since an unknown model is the most likely mistake
        names = _clip_name(one), one.judge or JUDGES.get(one.model)
        guide, judge = (self._scorer(name, self.device) if name else None for name in names)
        return _Models(pipe, guide, judge, [self._reward_scorer(each.name, self.device) for each in one.rewards])

    def _raters(self, one: GenerateSettings, rank_by: str, models: _Models) -> list[Rater]:
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
        return [clip.rater(_target(one), -1.0 if away else 1.0)]


@dataclass(frozen=True)
class _Models:
    """The models that draw and score an image; None where there is none."""

    pipe: Any
    guide: CLIPScorer | None
    judge: CLIPScorer | None
    rewards: list[RewardScorer]

    def draw(self, settings: GenerateSettings, on_step: Callable[[], None] | None) -> Image.Image:
        """Draw an image; one that came out empty is refused."""
        guidance = _guidance(self.guide.clip if self.guide else None, [each.reward for each in self.rewards], settings)
        image = _draw(self.pipe, guidance, settings, on_step)
        check_image(image, settings)
        return image

    def scored(self, generated: GeneratedImage) -> GeneratedImage:
        """Complete the record of an image: what steered it, and its scores."""
        if self.guide and generated.settings.scale:
            generated.guide = {"name": self.guide.record["model"], "fingerprint": self.guide.record["fingerprint"]}
        generated.scores = [each.score(generated) for each in (self.guide, self.judge, *self.rewards) if each]
        return generated


def _candidate(
    one: GenerateSettings, models: _Models, raters: Sequence[Rater], on_step: Callable[[], None] | None
) -> Candidate:
    """Draw and rate an image; one that came out empty, or has no finite reward, is not ranked."""
    try:
        image = models.draw(one, on_step)
    except FailedImageError as error:
        return Candidate(None, math.nan, one.seed, error.reason)
    reward = sum(rater(image) for rater in raters)
    return Candidate(image, reward, one.seed, "" if math.isfinite(reward) else f"has the reward {reward}")


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
    if settings.scale:
        raise ValueError(f"the pipeline {settings.model} comes without a CLIP: name the one that steers it (clip)")
    return None


def _guidance(clip: DualEncoder | None, rewards: Sequence[PromptReward], settings: GenerateSettings) -> Guidance | None:
    """Make what steers: CLIP, or one guidance by the weighted sum of CLIP and the rewards, which decodes once."""
    names = ("mode", "start", "stop", "every", "cap", "damping")
    # A record says nothing of decoding, and an image that was drawn in full is drawn again so.
    how = {**{name: getattr(settings, name) for name in names}, "decoding": None}
    by_clip = None
    if clip is not None and settings.scale:
        options = {name: getattr(settings, name) for name in ("scale", "cutouts", "seed")}
        by_clip = CLIPGuidance(clip, _target(settings), **options, **how)
    if not rewards:
        return by_clip
    weighted: list[tuple[float, Any]] = [] if by_clip is None else [(settings.scale or 0.0, by_clip.reward)]
    named = zip(settings.rewards, rewards, strict=True)
    weighted += [(each.weight, reward.with_prompts(settings.target)) for each, reward in named]
    return Guidance(WeightedRewards(weighted), **how)


def _target(settings: GenerateSettings) -> Any:
    """Return what CLIP steers to: the text, the images and the regions that are asked for, or else the prompt.

    Raises:
        ImageError: An image cannot be read, or is another one than is recorded.
    """
    whole: list[Any] = [settings.clip_prompt] if settings.clip_prompt else []
    whole += [_opened(file) for file in settings.clip_images]
    regions = [
        Region(each.target if isinstance(each.target, str) else _opened(each.target), each.box)
        for each in settings.regions
    ]
    return [*((target, 1.0) for target in whole), *regions] or settings.target


def _opened(file: ImageFile) -> Image.Image:
    return load_image(file.bytes(), file.path)


def _draw(
    pipe: Any, guidance: Guidance | None, settings: GenerateSettings, on_step: Callable[[], None] | None
) -> Image.Image:
    if getattr(pipe, "tokenizer", None) is not None:
        warn_truncated(pipe.tokenizer, [settings.prompt, settings.negative_prompt])
    call: dict[str, Any] = {
        "prompt": settings.prompt,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "generator": torch.Generator().manual_seed(settings.seed),  # on the CPU, so that all devices get the same noise
    }
    if settings.negative_prompt:
        call["negative_prompt"] = settings.negative_prompt
    if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:

        def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if "latents" in tensors and not tensors["latents"].isfinite().all():
                raise failed(settings, f"is not finite after step {step + 1} of {settings.steps}")
            if on_step:
                on_step()
            return tensors

        call["callback_on_step_end"] = callback
    with guidance.attach(pipe) if guidance else contextlib.nullcontext():
        return pipe(**call).images[0]
