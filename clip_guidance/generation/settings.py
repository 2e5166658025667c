"""All that determines one image, its defaults, and how it is read back from an image.

Nothing here is slow to import: the command line reads its defaults here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from typing import Any

from clip_guidance.images.metadata import read_record

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
TUNED = {"emoji": {"scale": 10.0, "start": 0.0}}  # what benchmarks/steering/tune.py found, by model
UNTUNED = {"scale": 1.0, "start": 0.0}
JUDGES = {"emoji": "emoji-judge"}  # a CLIP that never guided, by the model whose images it scores


@dataclass(frozen=True)
class GenerateSettings:
    """Everything that determines one image, and who scores it.

    Attributes:
        prompt: what the pipeline draws.
        negative_prompt: what it keeps away from.
        clip_prompt: what CLIP steers to and scores against; by default the prompt.
        seed: of the initial noise and of the cutouts.
        model: pipeline to draw with, as for ``load_pipeline``.
        clip: CLIP to steer with, as for ``CLIP.from_pretrained``; by default that of the model.
        judge: CLIP that scores but never steers; by default the one that belongs to the model, if any.
        scale: strength of CLIP guidance; 0 turns it off. By default what was tuned for the model, else 1.
        guidance_scale: strength of classifier-free guidance.
        steps: denoising steps.
        start: as for ``CLIPGuidance``; by default what was tuned for the model, else 0.
        mode, stop, every, cutouts, cap: as for ``CLIPGuidance``.
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
    scale: float | None = None
    guidance_scale: float = 3.0
    steps: int = 20
    mode: str = "x0"
    start: float | None = None
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

    def resolved(self) -> GenerateSettings:
        """These settings with the model's own values where none were given: what is drawn with and recorded."""
        tuned = TUNED.get(self.model, {}) if self.clip in (None, self.model) else {}
        own = {**UNTUNED, **tuned}
        scale = own["scale"] if self.scale is None else self.scale
        start = own["start"] if self.start is None else self.start
        return replace(self, scale=scale, start=start)

    @property
    def target(self) -> str:
        """What the image is steered to and scored against."""
        return self.clip_prompt or self.prompt


def read_settings(path: str | os.PathLike[str]) -> GenerateSettings:
    """The settings that an image was made with.

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
