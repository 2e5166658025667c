"""Find what suits a pipeline and a CLIP: settings of guidance, drawn on some prompts and judged by another CLIP.

The rule: of the settings whose kernel distance to real images is no higher than that of the unguided images, the one
whose images the judge most often gives the right name of all prompts; of equal ones the one that takes least time.
Without real images all settings are compared. The unguided images are among them: where nothing beats them, the scale
is 0.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from clip_guidance._display import DisplayMixin
from clip_guidance._tensors import unit_vectors
from clip_guidance._tuned import GuidanceDefaults, KnownModel, TunedPair
from clip_guidance.clip import DualEncoder, as_clip
from clip_guidance.generation.tuning_runs import DrawnImage, TuningRuns
from clip_guidance.guidance import CLIPGuidance
from clip_guidance.guidance.pairs import known_models
from clip_guidance.metrics.features import image_features, kernel_features, pooled_states
from clip_guidance.metrics.kid import kernel_distance
from clip_guidance.metrics.r_precision import r_precision
from clip_guidance.metrics.retrieval import unique

UNGUIDED = GuidanceDefaults(scale=0.0)
_FACTORS = (0.5, 1.0, 2.0, 4.0)  # of the calibrated strength


@dataclass(frozen=True)
class TuningGrid:
    """Say which settings are tried: each combination, scales first and windows last.

    Attributes:
        scales: Strengths; None for half, once, twice and four times the calibrated strength of the pair.
        modes: Names of modes.
        dampings: Curvatures; None for 0 and for the inverse of the calibrated strength.
        windows: Pairs (start, stop) of fractions of the run.
    """

    scales: Sequence[float] | None = None
    modes: Sequence[str] = ("x0", "exact")
    dampings: Sequence[float] | None = None
    windows: Sequence[tuple[float, float]] = ((0.0, 1.0), (0.0, 0.6))

    @property
    def needs_strength(self) -> bool:
        """Whether the calibrated strength must be known first."""
        return self.scales is None or self.dampings is None

    def settings(self, strength: float) -> list[GuidanceDefaults]:
        """List the settings, given the calibrated strength of the pair.

        Raises:
            ValueError: One of them is out of range.
        """
        scales = [_rounded(factor * strength) for factor in _FACTORS] if self.scales is None else self.scales
        dampings = [0.0, _rounded(1 / strength)] if self.dampings is None else self.dampings
        combined = itertools.product(self.windows, self.modes, dampings, scales)
        return [GuidanceDefaults(scale, mode, kappa, *window) for window, mode, kappa, scale in combined]


@dataclass(frozen=True)
class TriedSetting:
    """Hold what the judge found of one setting.

    Attributes:
        setting: The setting.
        named: Share of the images that the judge gives the right name of all prompts, in [0, 1].
        kernel_distance: Kernel distance to the real images; None without them.
        seconds: Seconds per image.
        failed: Why the setting could not be drawn; else "".
    """

    setting: GuidanceDefaults
    named: float = math.nan
    kernel_distance: float | None = None
    seconds: float = math.nan
    failed: str = ""


@dataclass(frozen=True)
class TuneResult(DisplayMixin):
    """Hold what a tune found.

    Attributes:
        pair: What suits the pipeline and the CLIP; ``save`` writes it to a file.
        tried: What was found of each setting, the unguided images first.
        untried: Number of settings that the budget left no images for.
    """

    pair: TunedPair
    tried: list[TriedSetting]
    untried: int = 0

    @property
    def best(self) -> TriedSetting:
        """The setting that was chosen."""
        return next(each for each in self.tried if each.setting == self.pair.defaults)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the chosen setting to a JSON file, which ``load_tuned`` reads.

        Raises:
            OSError: The file cannot be written.
        """
        self.pair.save(path)


def tune(
    pipe: Any,
    clip: DualEncoder,
    prompts: Sequence[str],
    judge: DualEncoder,
    *,
    images: Any = None,
    grid: TuningGrid | None = None,
    budget: int | None = None,
    seed: int = 0,
    runs: str | os.PathLike[str] | None = None,
    on_image: Callable[[], None] | None = None,
    **call: Any,
) -> TuneResult:
    """Find which strength, mode, damping and window suit a pipeline and a CLIP.

    Args:
        pipe: A text-to-image pipeline.
        clip: The CLIP that steers.
        prompts: Texts, at least 2 different ones; each setting draws an image of each, from the same noise.
        judge: A CLIP that never steers.
        images: Real images of the same kind, at least 2, as for ``encode_image``; None to compare names alone.
        grid: The settings; None for the default ones.
        budget: Most images that are drawn; settings that it does not suffice for are left out. None for no bound.
        seed: Seed of the noise of the first prompt; the next one has the next seed.
        runs: File of JSON lines that keeps what was drawn. Called again with it, what was interrupted goes on.
        on_image: Called after every image.
        call: Arguments of the pipeline, such as ``num_inference_steps`` and ``guidance_scale``.

    Returns:
        What was chosen, and what was found of each setting.

    Raises:
        ValueError: The judge is the CLIP that steers, there are too few prompts or images, the budget is too small,
            a setting is out of range, or ``runs`` holds another tune.
        OSError: ``runs`` cannot be written.

    Example:
        >>> import clip_guidance as cg
        >>> pipe = cg.load_pipeline("emoji")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> clip, judge = (cg.CLIP.from_pretrained(name) for name in ("emoji", "emoji-judge"))
        >>> grid = cg.TuningGrid(scales=(5.0,), modes=("x0",), dampings=(0.0,), windows=((0.0, 1.0),))
        >>> size = {"num_inference_steps": 1, "height": 32, "width": 32}
        >>> found = cg.tune(pipe, clip, ["a red apple", "a rocket"], judge, grid=grid, **size)
        >>> [each.setting.scale for each in found.tried]
        [0.0, 5.0]
    """
    clip, judge, prompts, grid = as_clip(clip), as_clip(judge), list(prompts), grid or TuningGrid()
    facts = _facts(pipe, clip, judge, prompts, {"seed": seed, "call": {k: _described(v) for k, v in call.items()}})
    least = (2 + grid.needs_strength) * len(prompts)
    if budget is not None and budget < least:
        raise ValueError(f"a budget of {budget} images is too small: {2 + grid.needs_strength} settings take {least}")
    real = None if images is None else image_features(judge, images)
    drawing = _Drawing(pipe, clip, judge, prompts, seed, call, TuningRuns(runs, facts), on_image)
    return _search(drawing, facts, grid, budget, real)


def _facts(
    pipe: Any, clip: DualEncoder, judge: DualEncoder, prompts: list[str], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return what is drawn and judged, as JSON holds it; refuse a judge that steers, and prompts that are alike."""
    pipeline, steering = known_models(pipe, clip)
    judging = {"name": str(judge.name_or_path), "fingerprint": judge.fingerprint()}
    if judging["fingerprint"] == steering.fingerprint:
        raise ValueError("the judge is the CLIP that steers, which finds its own images right: name another CLIP")
    if len(set(prompts)) < 2:
        raise ValueError(f"expected at least 2 different prompts to tell apart, got {len(set(prompts))}")
    models = {"pipeline": asdict(pipeline), "clip": asdict(steering), "judge": judging}
    return {"tune": 1, **models, "prompts": prompts, **settings}


def _search(
    drawing: _Drawing, facts: dict[str, Any], grid: TuningGrid, budget: int | None, real: Tensor | None
) -> TuneResult:
    """Try the settings, and choose."""
    first = [UNGUIDED, *([GuidanceDefaults()] if grid.needs_strength else [])]
    tried = [drawing.judged(setting, real) for setting in first]
    if tried[0].failed:
        raise ValueError(f"the pipeline cannot be drawn without guidance: {tried[0].failed}")
    others = grid.settings(drawing.strength() if grid.needs_strength else 1.0)
    count = len(others) if budget is None else min(len(others), budget // len(drawing.prompts) - len(first))
    tried += [drawing.judged(setting, real) for setting in others[:count]]
    best = choose(tried)
    found = {"images": None if real is None else len(real), **_figures(best), "unguided": _figures(tried[0])}
    settings = {name: facts[name] for name in ("prompts", "seed", "call", "judge")}
    measured = {"by": "clip-guidance tune", **settings, **found, "settings": len(tried)}
    measured["scheduler"] = type(drawing.pipe.scheduler).__name__
    pipeline, clip = KnownModel(**facts["pipeline"]), KnownModel(**facts["clip"])
    return TuneResult(TunedPair(pipeline, clip, best.setting, measured), tried, len(others) - count)


def choose(tried: Sequence[TriedSetting]) -> TriedSetting:
    """Choose by the rule of this module; the first setting is the unguided one."""
    limit = tried[0].kernel_distance
    sound = [each for each in tried if not each.failed]
    fair = [each for each in sound if limit is None or (each.kernel_distance or 0.0) <= limit]
    return max(fair, key=lambda each: (each.named, -each.seconds))


@dataclass(frozen=True)
class _Drawing:
    """Draw and judge settings; what was drawn before is read."""

    pipe: Any
    clip: DualEncoder
    judge: DualEncoder
    prompts: list[str]
    seed: int
    call: dict[str, Any]
    runs: TuningRuns
    on_image: Callable[[], None] | None

    def judged(self, setting: GuidanceDefaults, real: Tensor | None) -> TriedSetting:
        """Draw an image of each prompt, and judge them; a setting that the pipeline refuses fails alone."""
        try:
            drawn = list(self._images(setting))
        except ValueError as error:
            self.runs.fail(setting, " ".join(str(error).split())[:300])
        if reason := self.runs.failure(setting):
            return TriedSetting(setting, failed=reason)
        states = torch.tensor([each.state for each in drawn])
        texts, numbers = unique(self.prompts)
        embeds = unit_vectors(self._projected(states))
        named = r_precision(embeds, self.judge.encode_text(texts).cpu(), numbers, len(texts) - 1).value
        distance = None if real is None else kernel_distance(kernel_features(states), real.cpu())
        return TriedSetting(setting, named, distance, sum(each.seconds for each in drawn) / len(drawn))

    @torch.no_grad()
    def _projected(self, states: Tensor) -> Tensor:
        return self.judge.project_states(states.to(self.judge.device, self.judge.dtype)).float().cpu()

    def strength(self) -> float:
        """Return the geometric mean of the strengths that the calibrated setting came to."""
        found = [self.runs.image(GuidanceDefaults(), number) for number in range(len(self.prompts))]
        strengths = [each.calibrated for each in found if each is not None and each.calibrated]
        if not strengths:
            raise ValueError("no strength could be calibrated for this pair: give the scales and the dampings")
        return _rounded(math.exp(sum(map(math.log, strengths)) / len(strengths)))

    def _images(self, setting: GuidanceDefaults) -> Iterator[DrawnImage]:
        if self.runs.failure(setting):
            return
        for number in range(len(self.prompts)):
            if (known := self.runs.image(setting, number)) is None:
                known = self._draw(setting, number)
                self.runs.add(setting, number, known)
            if self.on_image is not None:
                self.on_image()
            yield known

    def _draw(self, setting: GuidanceDefaults, number: int) -> DrawnImage:
        prompt, began = self.prompts[number], time.perf_counter()
        guidance = CLIPGuidance(self.clip, prompt, **asdict(setting))
        noise = torch.Generator().manual_seed(self.seed + number)
        with guidance.attach(self.pipe):
            image = self.pipe(prompt=prompt, generator=noise, **self.call).images[0]
        seconds = time.perf_counter() - began
        calibrated = guidance.report.calibrated
        if calibrated is None and setting.scale is None:  # the packaged table has this pair
            calibrated = guidance.strength(0.0, 1, guidance.defaults_for(self.pipe))
        state = pooled_states(self.judge, image)[0].float().tolist()
        return DrawnImage(seconds, state, None if calibrated is None else float(calibrated.mean()))


def _figures(tried: TriedSetting) -> dict[str, Any]:
    return {name: getattr(tried, name) for name in ("named", "kernel_distance", "seconds")}


def _described(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else repr(value)[:200]


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")
