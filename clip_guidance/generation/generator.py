"""Images from prompts, each of which can be made again from what is written in it.

``GenerateSettings`` is all that determines one image. It is stored in the PNG as text (key
``clip_guidance``, JSON), next to the scores and the versions, and ``read_settings`` gets it back. Images
are drawn one at a time, each with a generator of its own: none depends on how many are made with it.

What is slow to import is imported when it is needed: the command line reads its defaults here.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_guidance._files import write_atomically
from clip_guidance.generation.settings import JUDGES, SCHEDULERS, GenerateSettings, read_settings
from clip_guidance.images.metadata import METADATA_KEY, png_with_record, read_record

__all__ = [
    "METADATA_KEY",
    "SCHEDULERS",
    "Drawer",
    "GeneratedImage",
    "GenerateSettings",
    "generate",
    "read_record",
    "read_settings",
]

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from clip_guidance.clip import CLIP
    from clip_guidance.guidance import CLIPGuidance


@dataclass
class GeneratedImage:
    """One image, and the record that is stored in it.

    Attributes:
        image: RGB.
        settings: what it was made with.
        guide: name and fingerprint of the CLIP that steered it; None if none did.
        scores: of each CLIP: ``score``, ``prompt``, ``guided`` and what ``ScoreDefinition.record`` tells.
        device: where it was drawn; other devices round differently.
    """

    image: Image.Image
    settings: GenerateSettings
    guide: dict[str, str] | None = None
    scores: list[dict[str, Any]] = field(default_factory=list)
    device: str = "cpu"

    def record(self) -> dict[str, Any]:
        """What is stored in the image."""
        return {
            "settings": asdict(self.settings),
            "guide": self.guide,
            "scores": self.scores,
            "device": self.device,
            "versions": _versions(),
        }

    def to_png(self) -> bytes:
        """The image as a PNG file that carries its record."""
        return png_with_record(self.image, self.record())

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes ``prompt-seed.png``, or ``prompt-seed-2.png`` and so on if another image has that name.

        Returns:
            The path; that of the existing file if it holds this very image and record.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        data = self.to_png()
        slug = re.sub(r"\W+", "-", self.settings.prompt.lower()).strip("-")[:40].rstrip("-") or "image"
        stem = f"{slug}-{self.settings.seed}"
        for suffix in itertools.chain([""], (f"-{number}" for number in itertools.count(2))):
            path = folder / f"{stem}{suffix}.png"
            if not path.exists():
                with write_atomically(path) as partial:
                    partial.write_bytes(data)
                return path
            if path.read_bytes() == data:
                return path
        raise AssertionError("unreachable: the suffixes are endless")

    def _repr_html_(self) -> str:
        from clip_guidance.report.generated import generated

        return generated([{"image": self.image, **self.record()}])._repr_html_()


def _versions() -> dict[str, str]:
    import diffusers
    import torch

    from clip_guidance import __version__

    return {"clip_guidance": __version__, "torch": str(torch.__version__), "diffusers": diffusers.__version__}


def generate(
    settings: Iterable[GenerateSettings],
    device: str | torch.device = "cpu",
    on_step: Callable[[], None] | None = None,
) -> Iterator[GeneratedImage]:
    """Draws one image for each settings and scores it with its guide and with a judge.

    Args:
        settings: one an image.
        device: where to draw.
        on_step: called after every denoising step.

    Yields:
        Each image as soon as it is done.

    Raises:
        ValueError: a model is unknown or a setting out of range.
    """
    draw = Drawer(device)
    for one in settings:
        yield draw(one, on_step)


class Drawer:
    """Draws one image at a time, and keeps the models of the latest ones.

    Args:
        device: where to draw.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = device
        self._pipeline = functools.lru_cache(maxsize=1)(_load_pipeline)
        self._scorer = functools.lru_cache(maxsize=2)(_load_scorer)

    def pipeline(self, settings: GenerateSettings) -> Any:
        """The pipeline that draws an image of these settings; loaded if the latest one was drawn by another."""
        return self._pipeline(settings.model, settings.scheduler, self.device)

    def __call__(self, settings: GenerateSettings, on_step: Callable[[], None] | None = None) -> GeneratedImage:
        """One image, scored by its guide and by a judge.

        Args:
            settings: what to draw.
            on_step: called after every denoising step.

        Raises:
            ValueError: a model is unknown or a setting out of range.
        """
        one = settings.resolved()
        pipe = self.pipeline(one)  # first: a model that is none is the plainest mistake
        names = _clip_name(one), one.judge or JUDGES.get(one.model)
        guide, judge = (self._scorer(name, self.device) if name else None for name in names)  # may fail: before drawing
        guidance = _guidance(guide.clip, one) if guide and one.scale else None
        generated = GeneratedImage(_draw(pipe, guidance, one, on_step), one, device=str(self.device))
        if guide and guidance:
            generated.guide = {"name": guide.record["model"], "fingerprint": guide.record["fingerprint"]}
        generated.scores = [each.score(generated) for each in (guide, judge) if each]
        return generated


@dataclass
class _Scorer:
    """A CLIP and the record of its score: computed once, since the fingerprint reads every weight."""

    clip: CLIP
    record: dict[str, Any]

    def score(self, generated: GeneratedImage) -> dict[str, Any]:
        from clip_guidance.metrics.clip_score import TORCHMETRICS, clip_score

        target = generated.settings.target
        score = clip_score(self.clip, generated.image, target, TORCHMETRICS).item()
        guided = generated.guide is not None and generated.guide["fingerprint"] == self.record["fingerprint"]
        return {"score": score, "prompt": target, "guided": guided, **self.record}


def _load_scorer(name: str, device: str | torch.device) -> _Scorer:
    from clip_guidance.clip import CLIP
    from clip_guidance.metrics.clip_score import TORCHMETRICS

    clip = CLIP.from_pretrained(name).to(device)
    return _Scorer(clip, TORCHMETRICS.record(clip))


def _load_pipeline(model: str, scheduler: str | None, device: str | torch.device) -> Any:
    import diffusers

    from clip_guidance.generation.pipelines import load_pipeline

    pipe = load_pipeline(model, device)
    pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        name, changes = SCHEDULERS[scheduler]
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **changes)
    return pipe


def _clip_name(settings: GenerateSettings) -> str | None:
    """The CLIP that steers and scores; None where there is none and none is needed."""
    from clip_guidance.clip.hub import packaged_models

    if settings.clip or settings.model in packaged_models():
        return settings.clip or settings.model
    if settings.scale:
        raise ValueError(f"the pipeline {settings.model} comes without a CLIP: name the one that steers it (clip)")
    return None


def _guidance(clip: CLIP, settings: GenerateSettings) -> CLIPGuidance:
    from clip_guidance.guidance import CLIPGuidance

    names = ("scale", "cutouts", "seed", "mode", "start", "stop", "every", "cap")
    return CLIPGuidance(clip, settings.target, **{name: getattr(settings, name) for name in names})


def _draw(
    pipe: Any, guidance: CLIPGuidance | None, settings: GenerateSettings, on_step: Callable[[], None] | None
) -> Image.Image:
    import torch

    from clip_guidance.clip.tokenizer import warn_truncated

    if getattr(pipe, "tokenizer", None) is not None:
        warn_truncated(pipe.tokenizer, [settings.prompt, settings.negative_prompt])
    call: dict[str, Any] = {
        "prompt": settings.prompt,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "generator": torch.Generator().manual_seed(settings.seed),  # on the CPU: one noise for all devices
    }
    if settings.negative_prompt:
        call["negative_prompt"] = settings.negative_prompt
    if on_step and "callback_on_step_end" in inspect.signature(pipe.__call__).parameters:

        def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step()
            return tensors

        call["callback_on_step_end"] = callback
    with guidance.attach(pipe) if guidance else contextlib.nullcontext():
        return pipe(**call).images[0]
