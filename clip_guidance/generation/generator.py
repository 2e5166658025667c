"""Generate images from prompts; each can be generated again from the record in its file.

:class:`~clip_guidance.generation.settings.GenerateSettings` is all that determines one image. The settings are stored
in the PNG beside the scores and the versions, and ``read_settings`` reads them back. Images are generated one at a
time, each with a random generator of its own, so that no image depends on how many are made with it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from PIL import Image

from clip_guidance.clip import CLIP, DualEncoder
from clip_guidance.clip.hub import packaged_models
from clip_guidance.clip.tokenizer import warn_truncated
from clip_guidance.generation.image import GeneratedImage, check_image, failed
from clip_guidance.generation.pipelines import load_pipeline
from clip_guidance.generation.settings import JUDGES, SCHEDULERS, GenerateSettings
from clip_guidance.generation.targets import ImageFile
from clip_guidance.guidance import CLIPGuidance, Guidance, Region, WeightedRewards
from clip_guidance.images.load import load_image
from clip_guidance.metrics.clip_score import TORCHMETRICS, clip_score
from clip_guidance.rewards import PromptReward, load_reward

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
        self._scorer = functools.lru_cache(maxsize=2)(_load_scorer)
        self._reward_scorer = functools.lru_cache(maxsize=8)(_load_reward_scorer)

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
        pipe = self.pipeline(one)  # first, since an unknown model is the most likely mistake
        names = _clip_name(one), one.judge or JUDGES.get(one.model)
        # loaded before an image is generated, since loading may fail
        guide, judge = (self._scorer(name, self.device) if name else None for name in names)
        rewards = [self._reward_scorer(each.name, self.device) for each in one.rewards]
        guidance = _guidance(guide.clip if guide else None, [each.reward for each in rewards], one)
        image = _draw(pipe, guidance, one, on_step)
        check_image(image, one)
        generated = GeneratedImage(image, one, device=str(self.device))
        if guide and one.scale:
            generated.guide = {"name": guide.record["model"], "fingerprint": guide.record["fingerprint"]}
        generated.scores = [each.score(generated) for each in (guide, judge, *rewards) if each]
        return generated


@dataclass
class _Scorer:
    """A CLIP and the record of its score, made once because the fingerprint reads every weight."""

    clip: DualEncoder
    record: dict[str, Any]

    def score(self, generated: GeneratedImage) -> dict[str, Any]:
        target = generated.settings.target
        score = clip_score(self.clip, generated.image, target, TORCHMETRICS).item()
        guided = generated.guide is not None and generated.guide["fingerprint"] == self.record["fingerprint"]
        return {"score": score, "prompt": target, "guided": guided, **self.record}


@dataclass
class _RewardScorer:
    """A reward that steered, and its record."""

    reward: PromptReward
    record: dict[str, Any]

    def score(self, generated: GeneratedImage) -> dict[str, Any]:
        target = generated.settings.target
        score = self.reward.score(generated.image, target).item()
        return {"score": score, "prompt": target, "guided": True, **self.record}


def _load_reward_scorer(name: str, device: str | torch.device) -> _RewardScorer:
    reward = load_reward(name, device=device)
    return _RewardScorer(reward, reward.record())


def _load_scorer(name: str, device: str | torch.device) -> _Scorer:
    clip = CLIP.from_pretrained(name).to(device)
    return _Scorer(clip, TORCHMETRICS.record(clip))


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
    how = {name: getattr(settings, name) for name in ("mode", "start", "stop", "every", "cap")}
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
