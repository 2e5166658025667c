"""Pairs of images from the same noise, without and with CLIP guidance: what the fields ask for, and how it is drawn."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_guidance.clip.domain import foreign_prompts
from clip_guidance.generation.candidates import Candidates
from clip_guidance.generation.image import GeneratedImage
from clip_guidance.generation.settings import RANGES, GenerateSettings
from clip_guidance.generation.targets import ImageFile
from clip_guidance.ui.preview import Finished, Stopped, generate_with_previews
from clip_guidance.ui.state import AppState, number, optional_number, whole_number

if TYPE_CHECKING:
    from PIL import Image

MAX_IMAGES = 16  # pairs of one run
MAX_CANDIDATES = 64
STOPPED = "Stopped. What was finished is in the history; Draw begins anew."
_DEFAULTS = GenerateSettings(prompt="unset")
_ROLES = {  # by whether it guided and whether it chose
    (True, True): "guided and chose it",
    (True, False): "guided it",
    (False, True): "chose it",
    (False, False): "did not guide it",
}


@dataclass(frozen=True)
class Request:
    """What is asked for, as the fields of the page hold it, in their order.

    Attributes:
        prompt: Text of both images.
        negative_prompt: What both are to avoid.
        seed: Seed of the noise of the first pair, a whole number.
        images: Number of pairs; each begins after the seeds of the one before.
        calibrate: Whether the strength is what suits the model and the CLIP, rather than ``strength``.
        strength: Scale of CLIP guidance; 0 switches it off.
        guidance_scale: Strength of classifier-free guidance; 1 switches it off.
        steps: Denoising steps per image.
        best_of: Number of candidates, of which CLIP chooses each image.
        particles: Number of images that travel together, of which CLIP chooses each image.
        damping: Curvature by which CLIP guidance is damped, as text; empty is the default.
        targets: Path and caption of images that CLIP steers to in place of the prompt.
        model: Name of the pipeline.
    """

    prompt: str
    negative_prompt: str = ""
    seed: float | None = _DEFAULTS.seed
    images: float | None = 1
    calibrate: bool = False
    strength: float | None = 1.0
    guidance_scale: float | None = _DEFAULTS.guidance_scale
    steps: float | None = _DEFAULTS.steps
    best_of: float | None = 1
    particles: float | None = 1
    damping: str = ""
    targets: list[tuple[str, str | None]] | None = None
    model: str = _DEFAULTS.model

    def settings(self, state: AppState) -> list[GenerateSettings]:
        """Return the settings of the guided image of each pair.

        Raises:
            ValueError: A field is empty or out of range; the message names it.
        """
        if not self.prompt.strip():
            raise ValueError("Prompt is empty: type what is to be drawn, or choose an example")
        if min(self.count, particles := whole_number("Particles", self.particles, 1, MAX_CANDIDATES)) > 1:
            raise ValueError("Best of and Particles exclude each other: set one of them to 1")
        first = GenerateSettings(
            self.prompt,
            self.negative_prompt,
            seed=whole_number("Seed", self.seed, *map(int, RANGES["seed"])),
            model=self.model,
            clip=state.steering_clip(self.model),
            scale=None if self.calibrate else number("Strength", self.strength, *RANGES["scale"]),
            guidance_scale=number("Classifier-free guidance", self.guidance_scale, *RANGES["guidance_scale"]),
            steps=whole_number("Steps", self.steps, *map(int, RANGES["steps"])),
            damping=optional_number("Damping", self.damping, *RANGES["damping"]),
            particles=particles,
            clip_images=tuple(ImageFile.read(path) for path, _ in self.targets or ()),
        )
        seeds = max(self.count, particles)  # of one image; no two pairs share any
        pairs = whole_number("Images", self.images, 1, MAX_IMAGES)
        return [replace(first, seed=first.seed + place * seeds) for place in range(pairs)]

    @property
    def count(self) -> int:
        """Number of candidates of an image."""
        return whole_number("Best of", self.best_of, 1, MAX_CANDIDATES)


@dataclass(frozen=True)
class Side:
    """One of the two images, in the state that the page shows.

    Attributes:
        image: The latest preview, or the file of the finished image; None before the first preview.
        caption: The current step or, for a finished image, its scores, as HTML.
        file: The finished PNG, which holds its settings; None until the image is finished.
    """

    image: Image.Image | Path | None = None
    caption: str = ""
    file: Path | None = None

    def stopped(self) -> Side:
        """Return what is left of the image: one that was not finished, such as "step 11 of 20", will not be."""
        return replace(self, caption=f"stopped at {self.caption}") if self.image and not self.file else self


@dataclass(frozen=True)
class Pair:
    """The two images of the page, from the same noise.

    Attributes:
        without: The image without CLIP guidance.
        guided: The image with CLIP guidance.
    """

    without: Side = field(default_factory=Side)
    guided: Side = field(default_factory=Side)

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both images, in the order of the page."""
        return self.without, self.guided

    def stopped(self) -> Pair:
        """Return what is left of both images."""
        return Pair(*(side.stopped() for side in self.sides))


@dataclass(frozen=True)
class Drawing:
    """Say how far a run has come.

    Attributes:
        pair: The pair that is drawn now, or that is finished.
        progress: How far the whole run is, as HTML.
        notes: What is to be told of it.
        done: What asks for this pair alone, once it is finished.
    """

    pair: Pair
    progress: str = ""
    notes: tuple[str, ...] = ()
    done: Request | None = None


def generate_pairs(state: AppState, request: Request, stopping: threading.Event | None = None) -> Iterator[Drawing]:
    """Generate each image without and then with CLIP guidance, from the same noise or the best of the same noises.

    Args:
        state: The models and folders of the page.
        request: What is asked for.
        stopping: Ends the run at the next step once it is set. None where nobody may.

    Yields:
        The pair at hand, whenever one of its images has changed; what is left of it, where the run was stopped.

    Raises:
        ValueError: A setting is out of range, or the model cannot be steered.
    """
    planned = request.settings(state)
    candidates = None if request.count == 1 else Candidates(request.count)
    foreign = foreign_prompts(request.model, [request.prompt])
    drawing = Drawing(Pair(), notes=(foreign,) if foreign else ())
    clock = _Clock(len(planned), planned[0].steps * request.count)
    try:
        for place, guided in enumerate(planned):
            drawing = Drawing(Pair(), clock.tell(place, "without", 0), drawing.notes)
            yield drawing
            for name, settings in (("without", replace(guided, scale=0.0)), ("guided", guided)):
                for event in generate_with_previews(
                    state.generator, settings, candidates=candidates, stopping=stopping
                ):
                    notes = drawing.notes
                    if isinstance(event, Finished):
                        notes += event.warnings
                        file = event.generated.save(state.downloads)
                        side, step = Side(file, _caption(event.generated), file), clock.steps
                    else:
                        side, step = Side(event.image, f"step {event.step} of {clock.steps}"), event.step
                    pair = replace(drawing.pair, **{name: side})
                    drawing = Drawing(pair, clock.tell(place, name, step), notes)
                    yield drawing
            alone = replace(request, seed=guided.seed, images=1)
            yield replace(drawing, progress="" if place + 1 == len(planned) else drawing.progress, done=alone)
    except Stopped:
        yield Drawing(drawing.pair.stopped(), notes=(*drawing.notes, STOPPED))
    except Exception:  # The caller tells it; nothing on the page may look as if the run went on.
        yield Drawing(drawing.pair.stopped(), notes=drawing.notes)
        raise


def settings_of(state: AppState, model: str) -> GenerateSettings:
    """Return the settings that are tuned for a pipeline; the prompt is a placeholder."""
    return GenerateSettings("unset", model=model, clip=state.steering_clip(model)).resolved()


class _Clock:
    """Tell how far a run is, and how long the rest of it takes at the same speed."""

    def __init__(self, pairs: int, steps: int) -> None:
        self.pairs, self.steps = pairs, steps
        self._began = time.monotonic()

    def tell(self, place: int, name: str, step: int) -> str:
        total = 2 * self.pairs * self.steps
        done = (2 * place + (name == "guided")) * self.steps + step
        left = f", about {(time.monotonic() - self._began) * (total / done - 1):.0f} s left" if done else ""
        which = f"image {place + 1} of {self.pairs}, " if self.pairs > 1 else ""
        how = "without guidance" if name == "without" else "with CLIP guidance"
        bar = f'<progress max="{total}" value="{done}"></progress>'
        return f"{bar}Drawing {which}{how}: step {step} of {self.steps}{left}"


def _caption(generated: GeneratedImage) -> str:
    found = generated.choice
    chosen = [f"the best of {found.n} candidates, seed {generated.settings.seed}"] if found else []
    strength = [] if generated.calibrated is None else [f"strength {generated.calibrated:.3g}, calibrated"]
    return "<br>".join([*map(_score, generated.scores), *chosen, *strength])


def _score(score: dict[str, Any]) -> str:
    role = _ROLES[score["guided"], score.get("chose", False)]
    return f"<b>{score['score']:.1f}</b> by {html.escape(str(score['model']))}, which {role}"
