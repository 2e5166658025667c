"""The tab that draws: the same noise without and with CLIP guidance, side by side, as the images emerge."""

from __future__ import annotations

import functools
import html
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from clip_guidance.generation.settings import GenerateSettings
from clip_guidance.ui.preview import Finished, drawn
from clip_guidance.ui.studio import COMPUTE, Studio, told, warn

if TYPE_CHECKING:
    from PIL import Image

STRONGEST = 30.0
ABOUT = (
    "Scores are 100 · cosine of image and prompt. A downloaded image can be drawn again: "
    "`clip-guidance generate --from image.png`."
)
_DEFAULTS = GenerateSettings(prompt="unset")


@dataclass(frozen=True)
class Side:
    """One of the two images.

    Attributes:
        image: the latest preview, or the finished image.
        caption: how far it is, or its scores.
        file: the finished PNG, which holds its settings.
    """

    image: Image.Image | None = None
    caption: str = ""
    file: Path | None = None


@dataclass(frozen=True)
class Pair:
    """What the page shows: the image without guidance, and that of the same noise with it."""

    without: Side = field(default_factory=Side)
    guided: Side = field(default_factory=Side)


def draw(studio: Studio, prompt: str, seed: float, steps: float, strength: float, model: str) -> Iterator[Pair]:
    """Draws both images.

    Args:
        studio: has the models.
        prompt: what to draw.
        seed: a whole number; of the noise of both images.
        steps: denoising steps.
        strength: of CLIP guidance; 0 is off.
        model: the pipeline.

    Yields:
        What is there to see, as it changes.

    Raises:
        gr.Error: a setting is out of range, or the model cannot be steered.
    """
    pair = Pair()
    with told():
        if seed is None or int(seed) != seed:
            raise ValueError(f"expected a whole number as seed, got {seed}")
        base = GenerateSettings(prompt, seed=int(seed), steps=int(steps), model=model, clip=studio.guide(model))
        yield pair
        for name, scale in (("without", 0.0), ("guided", float(strength))):
            for event in drawn(studio.drawer, replace(base, scale=scale)):
                if isinstance(event, Finished):
                    generated = event.generated
                    for message in event.warnings:
                        warn(message)
                    scores = "<br>".join(map(_score, generated.scores))
                    pair = replace(pair, **{name: Side(generated.image, scores, generated.save(studio.downloads))})
                else:
                    pair = replace(pair, **{name: Side(event.image, f"step {event.step} of {base.steps}")})
                yield pair


def settings_of(studio: Studio, model: str) -> GenerateSettings:
    """What is tuned for a pipeline."""
    return GenerateSettings("unset", model=model, clip=studio.guide(model)).resolved()


def _score(score: dict[str, Any]) -> str:
    role = "guided it" if score["guided"] else "did not guide it"
    return f"<b>{score['score']:.1f}</b> by {html.escape(str(score['model']))}, which {role}"


def tab(studio: Studio) -> None:
    """Lays out the tab."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            prompt = gr.Textbox(
                label="Prompt", value="a noto picture of a rocket", autofocus=True, elem_id="generate-prompt"
            )
            strength = gr.Slider(
                0,
                STRONGEST,
                _strength(studio, studio.model),
                step=0.5,
                label="Strength of CLIP guidance",
                info="0 is off.",
                elem_id="generate-strength",
            )
            steps = gr.Slider(1, 100, _DEFAULTS.steps, step=1, label="Steps", elem_id="generate-steps")
            seed = gr.Number(_DEFAULTS.seed, label="Seed", precision=0, elem_id="generate-seed")
            model = gr.Dropdown(studio.models, value=studio.model, label="Model", elem_id="generate-model")
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
                        elem_classes="drawn",
                    ),
                    gr.HTML(elem_id=f"generate-{name}-caption", min_height=44),
                    gr.DownloadButton(
                        "Download PNG with its settings", interactive=False, elem_id=f"generate-{name}-file"
                    ),
                ]
    gr.Markdown(ABOUT)

    def shown(*values: Any) -> Iterator[list[Any]]:
        for pair in draw(studio, *values):
            yield [part for side in (pair.without, pair.guided) for part in _parts(side)]

    drawing = gr.on(
        [start.click, prompt.submit],
        shown,
        [prompt, seed, steps, strength, model],
        outputs,
        show_progress="hidden",
        **COMPUTE,
    )
    stop.click(None, cancels=[drawing], api_visibility="private")
    model.change(functools.partial(_strength, studio), model, strength, api_visibility="private")


def _parts(side: Side) -> tuple[Any, ...]:
    done = side.file is not None
    return side.image, side.caption, gr.DownloadButton(value=side.file, interactive=done)


def _strength(studio: Studio, model: str) -> float:
    return float(settings_of(studio, model).scale or 0)
