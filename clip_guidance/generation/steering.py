"""What steers a generated image, made from its settings and the models that they name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from clip_guidance.clip import DualEncoder
from clip_guidance.generation.settings import METHODS, GenerateSettings
from clip_guidance.generation.targets import ImageFile
from clip_guidance.guidance import CLIPGuidance, Guidance, Region, WeightedRewards, methods
from clip_guidance.images.load import load_image
from clip_guidance.rewards import PromptReward


def make_guidance(
    clip: DualEncoder | None, rewards: Sequence[PromptReward], batch: Sequence[GenerateSettings]
) -> Guidance | None:
    """Make what steers: CLIP, or one guidance by the weighted sum of CLIP and the rewards, which decodes once.

    Args:
        clip: The CLIP that steers; None for none.
        rewards: The rewards that the settings name.
        batch: Settings of the images that are drawn together, of one :func:`~clip_guidance.generation.batch.shared`.
    """
    settings = batch[0]
    names = ("start", "stop", "every", "cap", "damping")
    mode = settings.mode if settings.method is None else getattr(methods, METHODS[settings.method])()
    # A record says nothing of decoding, and an image that was drawn in full is drawn again so.
    how: dict[str, Any] = {**{name: getattr(settings, name) for name in names}, "mode": mode, "decoding": None}
    by_clip = None
    if clip is not None and settings.scale != 0:
        options = {name: getattr(settings, name) for name in ("scale", "cutouts", "seed")}
        by_clip = CLIPGuidance(clip, [find_target(one) for one in batch], **options, **how)
    if not rewards:
        return by_clip
    weighted: list[tuple[float, Any]] = [] if by_clip is None else [(settings.scale or 0.0, by_clip.reward)]
    named = zip(settings.rewards, rewards, strict=True)
    weighted += [(each.weight, reward.with_prompts([one.target for one in batch])) for each, reward in named]
    return Guidance(WeightedRewards(weighted), **how)


def find_target(settings: GenerateSettings) -> Any:
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
