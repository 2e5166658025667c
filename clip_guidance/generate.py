"""Pictures from prompts, each of which can be made again from what is written in it.

``GenerateSettings`` is all that determines one picture. It is stored in the PNG as text (key
``clip_guidance``, JSON), next to the scores and the versions, and ``read_settings`` gets it back. Pictures
are drawn one at a time, each with a generator of its own: none depends on how many are made with it.

What is slow to import is imported when it is needed: the command line reads its defaults here.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from clip_guidance.clip import CLIP
    from clip_guidance.guidance import CLIPGuidance

METADATA_KEY = "clip_guidance"
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {  # class in diffusers and changes of its configuration
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++-2s": ("DPMSolverSinglestepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "sa": ("SASolverScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
JUDGES = {"emoji": "emoji-judge"}  # a CLIP that never guided, by the model whose pictures it scores


@dataclass(frozen=True)
class GenerateSettings:
    """Everything that determines one picture, and who scores it.

    Attributes:
        prompt: what the pipeline draws.
        negative_prompt: what it keeps away from.
        clip_prompt: what CLIP steers to and scores against; by default the prompt.
        seed: of the initial noise and of the cutouts.
        model: pipeline to draw with, as for ``load_pipeline``.
        clip: CLIP to steer with, as for ``CLIP.from_pretrained``; by default that of the model.
        judge: CLIP that scores but never steers; by default the one that belongs to the model, if any.
        scale: strength of CLIP guidance; 0 turns it off.
        guidance_scale: strength of classifier-free guidance.
        steps: denoising steps.
        mode, start, stop, every, cutouts, cap: as for ``CLIPGuidance``.
        scheduler: one of ``SCHEDULERS``; by default the model's own.

    Raises:
        ValueError: a value is out of range.
    """

    prompt: str
    negative_prompt: str = ""
    clip_prompt: str | None = None
    seed: int = 0
    model: str = "emoji"
    clip: str | None = None
    judge: str | None = None
    scale: float = 1.0
    guidance_scale: float = 3.0
    steps: int = 20
    mode: str = "x0"
    start: float = 0.0
    stop: float = 1.0
    every: int = 1
    cutouts: int = 1
    scheduler: str | None = None
    cap: float | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise ValueError(f"expected a prompt with at least one word, got {self.prompt!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {self.scheduler!r}")

    @property
    def target(self) -> str:
        """What the picture is steered to and scored against."""
        return self.clip_prompt or self.prompt


@dataclass
class GeneratedImage:
    """One picture, and the record that is stored in it.

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
        """What is stored in the picture."""
        return {
            "settings": asdict(self.settings),
            "guide": self.guide,
            "scores": self.scores,
            "device": self.device,
            "versions": _versions(),
        }

    def to_png(self) -> bytes:
        """The picture as a PNG file that carries its record."""
        from PIL import PngImagePlugin

        info = PngImagePlugin.PngInfo()
        info.add_text(METADATA_KEY, json.dumps(self.record()))
        buffer = io.BytesIO()
        self.image.save(buffer, "PNG", pnginfo=info)
        return buffer.getvalue()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Writes ``prompt-seed.png``, or ``prompt-seed-2.png`` and so on if another picture has that name.

        Returns:
            The path; that of the existing file if it holds this very picture and record.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        data = self.to_png()
        slug = re.sub(r"\W+", "-", self.settings.prompt.lower()).strip("-")[:40].rstrip("-") or "picture"
        stem = f"{slug}-{self.settings.seed}"
        for suffix in itertools.chain([""], (f"-{number}" for number in itertools.count(2))):
            path = folder / f"{stem}{suffix}.png"
            if not path.exists():
                part = path.with_suffix(".part")  # a picture is there in full or not at all
                part.write_bytes(data)
                os.replace(part, path)
                return path
            if path.read_bytes() == data:
                return path
        raise AssertionError("unreachable: the suffixes are endless")


def _versions() -> dict[str, str]:
    import diffusers
    import torch

    from clip_guidance import __version__

    return {"clip_guidance": __version__, "torch": str(torch.__version__), "diffusers": diffusers.__version__}


def read_record(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The record stored in a picture; None if it has none or is no picture."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            record = json.loads(image.info[METADATA_KEY])
    except Exception:  # missing, broken, another format, another program's text
        return None
    return record if isinstance(record, dict) and isinstance(record.get("settings"), dict) else None


def read_settings(path: str | os.PathLike[str]) -> GenerateSettings:
    """The settings that a picture was made with.

    Raises:
        ValueError: the file holds none, or those of another version of this package.
    """
    record = read_record(path)
    if record is None:
        raise ValueError(f"{path}: holds no clip_guidance settings; expected a PNG written by generate")
    known = {entry.name for entry in fields(GenerateSettings)}
    if unknown := sorted(set(record["settings"]) - known):
        raise ValueError(f"{path}: settings {', '.join(unknown)} are unknown to this version")
    return GenerateSettings(**record["settings"])


def generate(
    settings: Iterable[GenerateSettings],
    device: str | torch.device = "cpu",
    on_step: Callable[[], None] | None = None,
) -> Iterator[GeneratedImage]:
    """Draws one picture for each settings and scores it with its guide and with a judge.

    Args:
        settings: one a picture.
        device: where to draw.
        on_step: called after every denoising step.

    Yields:
        Each picture as soon as it is done.

    Raises:
        ValueError: a model is unknown or a setting out of range.
    """
    from clip_guidance.clip import CLIP
    from clip_guidance.score import TORCHMETRICS

    @functools.lru_cache(maxsize=1)
    def pipeline(model: str, scheduler: str | None) -> Any:
        return _load_pipeline(model, scheduler, device)

    @functools.lru_cache(maxsize=2)
    def scorer(name: str) -> _Scorer:
        clip = CLIP.from_pretrained(name).to(device)
        return _Scorer(clip, TORCHMETRICS.record(clip))

    for one in settings:
        pipe = pipeline(one.model, one.scheduler)  # first: a model that is none is the plainest mistake
        names = _clip_name(one), one.judge or JUDGES.get(one.model)
        guide, judge = (scorer(name) if name else None for name in names)  # before the picture: they may fail
        guidance = _guidance(guide.clip, one) if guide and one.scale else None
        image = _draw(pipe, guidance, one, on_step)
        generated = GeneratedImage(image, one, device=str(device))
        if guide and guidance:
            generated.guide = {"name": guide.record["model"], "fingerprint": guide.record["fingerprint"]}
        generated.scores = [each.score(generated) for each in (guide, judge) if each]
        yield generated


@dataclass
class _Scorer:
    """A CLIP and the record of its score: computed once, since the fingerprint reads every weight."""

    clip: CLIP
    record: dict[str, Any]

    def score(self, generated: GeneratedImage) -> dict[str, Any]:
        from clip_guidance.score import TORCHMETRICS, clip_score

        target = generated.settings.target
        score = clip_score(self.clip, generated.image, target, TORCHMETRICS).item()
        guided = generated.guide is not None and generated.guide["fingerprint"] == self.record["fingerprint"]
        return {"score": score, "prompt": target, "guided": guided, **self.record}


def _load_pipeline(model: str, scheduler: str | None, device: str | torch.device) -> Any:
    import diffusers

    from clip_guidance.pipeline import load_pipeline

    pipe = load_pipeline(model, device)
    pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        name, changes = SCHEDULERS[scheduler]
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **changes)
    return pipe


def _clip_name(settings: GenerateSettings) -> str | None:
    """The CLIP that steers and scores; None where there is none and none is needed."""
    from clip_guidance.hub import packaged_models

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

    from clip_guidance.tokenizer import warn_truncated

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
