"""The tab Generate: the same noise without and with CLIP guidance, side by side."""

from __future__ import annotations

import functools
import html
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from clip_guidance.clip.domain import foreign_prompts
from clip_guidance.generation.candidates import Candidates
from clip_guidance.generation.image import GeneratedImage
from clip_guidance.generation.settings import RANGES, GenerateSettings
from clip_guidance.ui.preview import Finished, generate_with_previews
from clip_guidance.ui.state import COMPUTE, AppState, as_gradio_error, warn, whole_number

if TYPE_CHECKING:
    from PIL import Image

MAX_SCALE = 30.0
MAX_CANDIDATES = 16
ABOUT = (
    "Scores are 100 · cosine of image and prompt. A downloaded image can be generated again: "
    "`clip-guidance generate --from image.png`."
)
STEP = "step"  # begins the caption of an image that is not finished
_DEFAULTS = GenerateSettings(prompt="unset")
_ROLES = {  # by whether it guided and whether it chose
    (True, True): "guided and chose it",
    (True, False): "guided it",
    (False, True): "chose it",
    (False, False): "did not guide it",
}


@dataclass(frozen=True)
class Side:
    """One of the two images, in the state that the page shows.

    Attributes:
        image: The latest preview or the finished image; None before the first preview.
        caption: The current step or, for a finished image, its scores, as HTML.
        file: The finished PNG, which holds its settings; None until the image is finished.
    """

    image: Image.Image | None = None
    caption: str = ""
    file: Path | None = None


@dataclass(frozen=True)
class Pair:
    """The two images of the page, from the same noise.

    Attributes:
        without: The image without CLIP guidance.
        guided: The image with CLIP guidance.
    """

    without: Side = field(default_factory=Side)
    guided: Side = field(default_factory=Side)


def generate_pair(
    state: AppState,
    prompt: str,
    seed: float,
    steps: float,
    strength: float,
    model: str,
    number: float = 1,
    damping: float | None = None,
    particles: float = 1,
) -> Iterator[Pair]:
    """Generate an image without and then one with CLIP guidance, from the same noise or the best of the same noises.

    Args:
        state: The models and folders of the page.
        prompt: Text of both images.
        seed: Seed of the noise of both images, a whole number.
        steps: Denoising steps per image, at least 1.
        strength: Scale of CLIP guidance; 0 switches it off.
        model: Name of the pipeline.
        number: Number of candidates, of which CLIP chooses each of the two images; from ``seed`` on, at least 1.
        damping: Curvature by which CLIP guidance is damped; None is the default.
        particles: Number of images that travel together, of which CLIP chooses each of the two; at least 1.

    Yields:
        Both images, whenever one of them has changed.

    Raises:
        gr.Error: A setting is out of range, or the model cannot be steered.
    """
    pair = Pair()
    with as_gradio_error():
        base = GenerateSettings(
            prompt,
            seed=whole_number("seed", seed),
            steps=whole_number("steps", steps),
            model=model,
            clip=state.steering_clip(model),
            damping=damping,
            particles=whole_number("particles", particles),
        )
        count = whole_number("candidates", number)
        candidates = None if count == 1 else Candidates(count)
        if message := foreign_prompts(model, [prompt]):
            warn(message)
        yield pair
        for name, scale in (("without", 0.0), ("guided", float(strength))):
            one = replace(base, scale=scale)
            for event in generate_with_previews(state.generator, one, candidates=candidates):
                if isinstance(event, Finished):
                    generated = event.generated
                    for message in event.warnings:
                        warn(message)
                    file = generated.save(state.downloads)
                    pair = replace(pair, **{name: Side(generated.image, _caption(generated), file)})
                else:
                    pair = replace(pair, **{name: Side(event.image, f"{STEP} {event.step} of {base.steps * count}")})
                yield pair


def stopped(*captions: str | None) -> list[str]:
    """Say in the captions of images that are not finished, such as "step 11 of 20", that they will not be."""
    return [f"stopped at {caption}" if (caption or "").startswith(STEP) else caption or "" for caption in captions]


def settings_of(state: AppState, model: str) -> GenerateSettings:
    """Return the settings that are tuned for a pipeline; the prompt is a placeholder."""
    return GenerateSettings("unset", model=model, clip=state.steering_clip(model)).resolved()


def _caption(generated: GeneratedImage) -> str:
    found = generated.choice
    chosen = [f"the best of {found.n} candidates, seed {generated.settings.seed}"] if found else []
    return "<br>".join([*map(_score, generated.scores), *chosen])


def _score(score: dict[str, Any]) -> str:
    role = _ROLES[score["guided"], score.get("chose", False)]
    return f"<b>{score['score']:.1f}</b> by {html.escape(str(score['model']))}, which {role}"


class _Fields(NamedTuple):
    """The fields of the tab, in the order of the arguments of :func:`generate_pair`."""

    prompt: gr.Textbox
    seed: gr.Number
    steps: gr.Slider
    strength: gr.Slider
    model: gr.Dropdown
    number: gr.Slider
    damping: gr.Number
    particles: gr.Slider


def _fields(state: AppState) -> _Fields:
    prompt = gr.Textbox(
        label="Prompt", value="a noto picture of a rocket", autofocus=True, elem_id="generate-prompt"
    )
    strength = gr.Slider(
        0,
        MAX_SCALE,
        _strength(state, state.model),
        step=0.5,
        label="Strength of CLIP guidance",
        info="0 is off.",
        elem_id="generate-strength",
    )
    steps = gr.Slider(1, 100, _DEFAULTS.steps, step=1, label="Steps", elem_id="generate-steps")
    seed = gr.Number(_DEFAULTS.seed, label="Seed", precision=0, elem_id="generate-seed")
    number = gr.Slider(
        1,
        MAX_CANDIDATES,
        1,
        step=1,
        label="Candidates",
        info="CLIP chooses each image among this many, from this seed on.",
        elem_id="generate-candidates",
    )
    damping = gr.Number(
        label="Damping",
        info="Damps strong guidance; empty is the default.",
        minimum=RANGES["damping"][0],
        elem_id="generate-damping",
    )
    particles = gr.Slider(
        1,
        MAX_CANDIDATES,
        1,
        step=1,
        label="Particles",
        info="So many images travel together; CLIP chooses among them on the way.",
        elem_id="generate-particles",
    )
    model = gr.Dropdown(state.models, value=state.model, label="Model", elem_id="generate-model")
    return _Fields(prompt, seed, steps, strength, model, number, damping, particles)


def tab(state: AppState) -> None:
    """Lay out the tab Generate."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            fields = _fields(state)
            with gr.Row():
                start = gr.Button("Draw", variant="primary", elem_id="generate-draw")
                stop = gr.Button("Stop", elem_id="generate-stop")
        outputs: list[Any] = []
        for name, label in (("without", "Without guidance"), ("guided", "With CLIP guidance")):
            with gr.Column(scale=3, min_width=240):
                outputs += [
                    gr.Image(
                        label=label,
                        format="png",
                        type="pil",
                        height=360,
                        interactive=False,
                        buttons=["fullscreen"],
                        elem_id=f"generate-{name}",
                        elem_classes="generated",
                    ),
                    gr.HTML(elem_id=f"generate-{name}-caption", min_height=44),
                    gr.DownloadButton(
                        "Download PNG with its settings", interactive=False, elem_id=f"generate-{name}-file"
                    ),
                ]
    gr.Markdown(ABOUT)

    def update(*values: Any) -> Iterator[list[Any]]:
        for pair in generate_pair(state, *values):
            yield [part for side in (pair.without, pair.guided) for part in _parts(side)]

    generation = gr.on(
        [start.click, fields.prompt.submit],
        update,
        list(fields),
        outputs,
        show_progress="hidden",
        **COMPUTE,
    )
    captions = [output for output in outputs if isinstance(output, gr.HTML)]
    stop.click(stopped, captions, captions, cancels=[generation], show_progress="hidden", api_visibility="private")
    strength_of = functools.partial(_strength, state)
    fields.model.change(strength_of, fields.model, fields.strength, api_visibility="private")


def _parts(side: Side) -> tuple[Any, ...]:
    done = side.file is not None
    return side.image, side.caption, gr.DownloadButton(value=side.file, interactive=done)


def _strength(state: AppState, model: str) -> float:
    scale = settings_of(state, model).scale
    return 1.0 if scale is None else float(scale)  # a slider shows a number
