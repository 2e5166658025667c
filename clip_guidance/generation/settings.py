"""All that determines one image, with its defaults, and how it is read from a file.

Nothing here is slow to import, because the command line takes its defaults from here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from reprlib import repr as shortened
from typing import Any

from clip_guidance._files import is_valid_text
from clip_guidance._tuned import GuidanceDefaults, named_defaults
from clip_guidance.generation.targets import ImageFile, PlacedTarget
from clip_guidance.generation.weighted_reward import MAX_NAME, WeightedReward
from clip_guidance.images.metadata import read_record

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {  # class of diffusers and changes of its configuration
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
METHODS = {  # published methods by their name, and their class in clip_guidance.guidance.methods
    "dps": "DPS",
    "lgd-mc": "LGDMC",
    "freedom": "FreeDoM",
    "mpgd": "MPGD",
    "universal": "UniversalGuidance",
    "tfg": "TFG",
    "tilt": "Tilt",
}
RANGES: dict[str, tuple[float, float]] = {  # of the numbers, both ends included; the command line and the page obey too
    "seed": (-(2**63), 2**63 - 1),  # what torch's generators take
    "scale": (-10_000.0, 10_000.0),
    "guidance_scale": (-1_000.0, 1_000.0),
    "steps": (1, 10_000),
    "start": (0.0, 1.0),
    "stop": (0.0, 1.0),
    "every": (1, 10_000),
    "cutouts": (1, 256),
    "cap": (1e-6, 1_000.0),
    "damping": (0.0, 10_000.0),
    "particles": (1, 10_000),
    "width": (8, 16_384),
    "height": (8, 16_384),
}
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {  # by annotation
    "str": ((str,), "a text"),
    "int": ((int,), "a whole number"),
    "float": ((float, int), "a number"),
}
_RECORDED: dict[str, type[ImageFile] | type[PlacedTarget] | type[WeightedReward]] = {
    "clip_images": ImageFile,
    "regions": PlacedTarget,
    "rewards": WeightedReward,
}
# Settings that earlier versions draw without, and what they are where they are not used.
_LATER: dict[str, Any] = {
    **{"damping": 0.0, "particles": 1, "clip_images": [], "regions": [], "rewards": []},
    **dict.fromkeys(("width", "height", "method")),
}
JUDGES = {"emoji": "emoji-judge"}  # by model, a CLIP that never guides and scores its images


@dataclass(frozen=True)
class GenerateSettings:
    """All that determines one image, and the CLIPs that score it.

    Attributes:
        prompt: What the pipeline is to show.
        negative_prompt: What the pipeline is to avoid; empty by default.
        clip_prompt: Text that CLIP steers to, and that the image is scored against. By default the prompt, to which
            CLIP steers only where there are neither ``clip_images`` nor ``regions``.
        seed: Of the initial noise and of the cutouts.
        model: Pipeline, as for ``load_pipeline``.
        clip: CLIP that steers, as for ``CLIP.from_pretrained``; by default that of the model.
        judge: CLIP that scores but never steers; by default the one that belongs to the model, if any.
        scale: Strength of CLIP guidance; 0 turns it off. By default what was tuned for the model, else a strength that
            is calibrated as the image is drawn (see :class:`~clip_guidance.guidance.CLIPGuidance`).
        guidance_scale: Strength of classifier-free guidance; 1 turns it off.
        steps: Denoising steps, at least 1.
        mode: How CLIP steers: "x0", by the gradient at the predicted image, "exact", through the denoiser too, "noisy",
            by a tower that reads the noisy sample, or "blend", by that tower and at the predicted image. By default
            what was tuned for the model, else "x0".
        start: Share of the steps, in [0, 1], after which CLIP guidance begins. By default what was tuned for the model,
            else 0.
        stop: Share of the steps, in [0, 1], after which CLIP guidance ends. By default what was tuned for the model,
            else 1.
        every: CLIP steers at every n-th step.
        cutouts: Views of the image that CLIP sees at each step; 1 is the whole image.
        scheduler: One of ``SCHEDULERS``; by default the model's own.
        cap: Longest step of CLIP guidance, in steps of classifier-free guidance; None is no cap.
        damping: Curvature of the reward, by which strong guidance is damped. By default what was tuned for the model,
            else 0.
        particles: Number of images that travel together, from as many seeds; CLIP chooses among them on the way, by
            all that it steers to, and the best is the image. Where the pipeline comes without a CLIP, the rewards do.
            1 is this image alone. DDIM adds noise (eta 1) where there are several.
        clip_images: Files of images that CLIP steers to, each with the weight of a text.
        regions: Parts of the image, each with a text or an image of its own that CLIP steers to.
        width: Pixels; by default the pipeline's own. It is given with the height, or not at all.
        height: Pixels; by default the pipeline's own.
        method: Published method by which CLIP steers, one of ``METHODS``, in place of a ``mode``, with its paper's
            parameters; ``scale`` is then a factor of its step and 1 by default. None for the mode.
        rewards: Rewards that steer too, in the same way; they rate the image against the text of CLIP. Where the
            pipeline comes without a CLIP and none is named, they steer alone, and ``scale`` is 0 by default.

    Raises:
        ValueError: A value is out of range.

    Example:
        >>> settings = GenerateSettings("a red apple", seed=7)
        >>> settings.scale is None, settings.resolved().scale
        (True, 10.0)
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
    mode: str | None = None
    start: float | None = None
    stop: float | None = None
    every: int = 1
    cutouts: int = 1
    scheduler: str | None = None
    cap: float | None = None
    damping: float | None = None
    particles: int = 1
    clip_images: tuple[ImageFile, ...] = ()
    regions: tuple[PlacedTarget, ...] = ()
    rewards: tuple[WeightedReward, ...] = ()
    width: int | None = None
    height: int | None = None
    method: str | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            _check(entry.name, str(entry.type), getattr(self, entry.name))
        if not self.prompt.strip():
            raise ValueError(f"expected a prompt with at least one word, got {shortened(self.prompt)}")
        for name in ("model", "clip", "judge"):
            if len(given := getattr(self, name) or "") > MAX_NAME or "\0" in given:
                raise ValueError(f"{name} must be a name, a folder or a hub id, got {shortened(given)}")
        start, stop = self.start or 0.0, 1.0 if self.stop is None else self.stop
        if not start < stop:
            raise ValueError(f"start must be less than stop, got {start} and {stop}")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {shortened(self.scheduler)}")
        if (self.width is None) != (self.height is None):  # pipelines of diffusers ignore one alone
            raise ValueError(f"give width and height, or none of them, got {self.width} and {self.height}")
        if self.method is not None and self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {shortened(self.method)}")
        if self.method is not None and self.mode is not None:
            raise ValueError(f"give a mode or a method, got {self.mode} and {self.method}")

    def resolved(self) -> GenerateSettings:
        """Fill in the model's own values where none were given; an image records the result.

        The scale of a pair that is in no table stays None, without rewards: it is calibrated as the image is drawn.
        """
        has_tower = not self.regions and not self.rewards  # a tower knows CLIP's whole image alone
        own = named_defaults(self.model, self.clip or self.model, self.mode, has_tower)
        if own is None:
            beside_rewards = 0.0 if self.clip is None else 1.0  # their weights are relative to it
            own = GuidanceDefaults(scale=beside_rewards if self.rewards else None)
        if self.method is not None:  # what was measured is of the modes; a method has a step size of its own
            own = GuidanceDefaults(scale=0.0 if own.scale == 0 else 1.0)
        return self.filled(own)

    def filled(self, own: GuidanceDefaults) -> GenerateSettings:
        """Fill in what suits the model and the CLIP where nothing was given; its window where neither end was."""
        values = {name: getattr(own, name) for name in ("scale", "mode", "damping")}
        is_open = self.start is None and self.stop is None
        values |= {"mode": None} if self.method is not None else {}
        values |= {"start": own.start, "stop": own.stop} if is_open else {"start": 0.0, "stop": 1.0}
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})

    def overridden(self, values: Mapping[str, Any]) -> GenerateSettings:
        """Replace settings; of a mode and a method the given one takes the place of the other."""
        other = {"mode": "method", "method": "mode"}
        left = {other[name]: None for name in other if values.get(name) is not None}
        return replace(self, **{**left, **values})

    def record(self) -> dict[str, Any]:
        """Return the settings as JSON holds them; one that came later is left out where it is not used."""
        settings = asdict(self, dict_factory=lambda pairs: {name: _as_list(value) for name, value in pairs})
        unused = {name for name, value in _LATER.items() if settings[name] in (None, value)}
        return {name: value for name, value in settings.items() if name not in unused}

    @property
    def target(self) -> str:
        """The text that the image is scored against, and steered to where nothing else is asked for."""
        return self.clip_prompt or self.prompt


def read_settings(path: str | os.PathLike[str]) -> GenerateSettings:
    """Read the settings that an image was made with from its file.

    Raises:
        ValueError: The file holds no settings, those of another version of this package, or one that is of another
            type or out of range; the message names it.
    """
    record = read_record(path)
    if record is None:
        raise ValueError(f"{path}: holds no clip_guidance settings; expected a PNG written by generate")
    try:
        return settings_from(record["settings"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def settings_from(values: Mapping[str, Any]) -> GenerateSettings:
    """Make settings from what a record holds, which anybody may have written.

    Raises:
        ValueError: A setting is missing, unknown, of another type, or out of range; the message names it.

    Example:
        >>> from clip_guidance.generation.settings import settings_from
        >>> settings_from({"prompt": "a red apple", "seed": "7"})
        Traceback (most recent call last):
        ValueError: seed must be a whole number, got '7'
    """
    required = [entry.name for entry in fields(GenerateSettings) if entry.default is MISSING]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"the setting {missing[0]} is missing")
    known = {entry.name for entry in fields(GenerateSettings)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"settings {shortened(unknown)} are unknown to this version")
    recorded = {name: _entries(name, values[name]) for name in _RECORDED if name in values}
    # An image without a damping was drawn without, whatever suits its models now.
    return GenerateSettings(**{"damping": 0.0, **values, **recorded})


def _entries(name: str, values: Any) -> tuple[Any, ...]:
    """Read what a record holds of a setting that has several entries."""
    if not isinstance(values, list):
        raise ValueError(f"{name} must be a list, got {shortened(values)}")
    try:
        return tuple(_RECORDED[name].from_record(value) for value in values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check(name: str, annotation: str, value: Any) -> None:
    """Check one setting by its annotation, such as ``float | None``, and its range."""
    if kind_of_entry := _RECORDED.get(name):
        if not isinstance(value, tuple) or not all(isinstance(entry, kind_of_entry) for entry in value):
            raise ValueError(f"{name} must be a tuple of {kind_of_entry.__name__}, got {shortened(value)}")
        return
    kind, _, optional = annotation.partition(" | ")
    if value is None and optional:
        return
    types, expected = _KINDS[kind]
    if not isinstance(value, types) or isinstance(value, bool):
        raise ValueError(f"{name} must be {expected}, got {shortened(value)}")
    if isinstance(value, str) and not is_valid_text(value):
        raise ValueError(f"{name} must be valid text, got {shortened(value)}")
    low, high = RANGES.get(name, (0, 0))
    if isinstance(value, (int, float)) and not low <= value <= high:  # NaN is in no range
        raise ValueError(f"{name} must be from {low:,} to {high:,}, got {shortened(value)}")
