"""The tab Generate: the same noise without and with CLIP guidance, side by side."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import astuple, fields
from typing import Any

import gradio as gr

from clip_guidance.ui.events import FORM, QUICK, RESULT, RunButton, Update, notice_line, on_run
from clip_guidance.ui.history import Entry, record, thumbnails
from clip_guidance.ui.pairs import MAX_CANDIDATES, MAX_IMAGES, Pair, Request, generate_pairs, settings_of
from clip_guidance.ui.state import AppState

MAX_SCALE = 30.0
EMPTY = (
    '<div class="cg-empty"><b>Draw</b> makes two images from the same noise: one without and one with CLIP guidance, '
    "so that you see what guidance does. Choose an example or type a prompt.</div>"
)
ABOUT = (
    "Scores are 100 · cosine of image and prompt. A downloaded image can be generated again: "
    "`clip-guidance generate --from image.png`; one that was steered to an image needs it, too: `--clip-image FILE`."
)
NO_HISTORY = "Every pair that you draw stays here until the page is reloaded; a click brings it back with its settings."
DICE = "() => Math.floor(Math.random() * 2 ** 31)"
EXAMPLES = {  # by model, since no model knows all words
    "emoji": [
        "a noto picture of a rocket",
        "a twemoji picture of a red apple",
        "a noto picture of a dog face",
    ],
    "": ["a red apple on a wooden table", "a lighthouse at night, oil painting", "a fox in the snow, photograph"],
}


def examples_of(model: str) -> list[str]:
    """Return prompts that a model can draw."""
    return EXAMPLES.get(model, EXAMPLES[""])


def _first_fields(state: AppState) -> dict[str, Any]:
    """Lay out the fields that are always in sight."""
    examples = examples_of(state.model)
    made: dict[str, Any] = {}
    made["prompt"] = gr.Textbox(label="Prompt", value=examples[0], autofocus=True, elem_id="generate-prompt")
    gr.Examples(
        [[example] for example in examples],
        made["prompt"],
        label="Examples",
        elem_id="generate-examples",
        api_visibility="private",
    )
    made["negative_prompt"] = gr.Textbox(
        "", label="Negative prompt", placeholder="what is not to be seen", max_lines=1, elem_id="generate-negative"
    )
    with gr.Row(elem_classes="cg-line"):
        made["seed"] = gr.Number(_default("seed"), label="Seed", min_width=100, scale=3, elem_id="generate-seed")
        dice = gr.Button("⚄ Dice", size="sm", min_width=64, scale=0, elem_id="generate-dice")
        label = f"Images, 1 to {MAX_IMAGES}"
        made["images"] = gr.Number(_default("images"), label=label, min_width=100, scale=3, elem_id="generate-images")
    dice.click(None, None, made["seed"], js=DICE, **QUICK)
    scale = settings_of(state, state.model).scale
    made["calibrate"] = gr.Checkbox(
        scale is None,
        label="Strength that suits model and CLIP",
        info="Calibrated as each image is drawn.",
        visible=scale is None,
        elem_id="generate-calibrate",
    )
    made["strength"] = gr.Slider(
        0,
        _most(scale),
        _default("strength") if scale is None else scale,
        step=0.5,
        label="Strength of CLIP guidance",
        info="0 is off.",
        visible=scale is not None,
        elem_id="generate-strength",
    )
    return made


def _further_fields(state: AppState) -> dict[str, Any]:
    """Lay out the fields that most runs leave as they are."""
    numbers = {
        "guidance_scale": ("Classifier-free guidance", "How closely both follow the prompt; 1 is off."),
        "steps": ("Steps", "More are slower and finer."),
        "best_of": ("Best of", f"CLIP chooses each image among so many, up to {MAX_CANDIDATES}."),
        "particles": ("Particles", "So many travel together; CLIP chooses on the way."),
    }
    made: dict[str, Any] = {}
    with gr.Row():
        for name, (label, info) in numbers.items():
            elem_id = f"generate-{name.replace('_', '-')}"
            made[name] = gr.Number(_default(name), label=label, info=info, min_width=130, elem_id=elem_id)
    made["damping"] = gr.Textbox(
        "",  # until More settings is opened, a field without a value has None
        label="Damping",
        info="Damps strong guidance; empty is the default.",
        max_lines=1,
        elem_id="generate-damping",
    )
    made["targets"] = gr.Gallery(
        label="Image target: CLIP steers to it in place of the prompt",
        type="filepath",
        columns=3,
        height=150,
        elem_id="generate-targets",
    )
    made["model"] = gr.Dropdown(state.models, value=state.model, label="Model", elem_id="generate-model")
    return made


def _default(name: str) -> Any:
    return next(field.default for field in fields(Request) if field.name == name)


def _side(name: str, label: str) -> list[Any]:
    """Lay out an image, its caption and its download."""
    with gr.Column(min_width=150):
        return [
            gr.Image(
                label=label,
                format="png",
                height=320,
                interactive=False,
                buttons=["fullscreen"],
                elem_id=f"generate-{name}",
                elem_classes="generated",
            ),
            gr.HTML(elem_id=f"generate-{name}-caption", min_height=44),
            gr.DownloadButton("Download PNG", size="sm", interactive=False, elem_id=f"generate-{name}-file"),
        ]


def tab(state: AppState) -> None:
    """Lay out the tab Generate."""
    with gr.Row(elem_classes="cg-tab"):
        with gr.Column(scale=2, min_width=300, elem_classes=FORM):
            made = _first_fields(state)
            with gr.Row():
                draw = RunButton.make("Draw", "Drawing…", "generate-draw", stop_id="generate-stop", min_width=100)
            with gr.Accordion("More settings", open=False, elem_id="generate-more"):
                made |= _further_fields(state)
        with gr.Column(scale=5, min_width=320, elem_classes=RESULT):
            notice = notice_line("generate-notice")
            progress = gr.HTML(EMPTY, elem_id="generate-progress", elem_classes="cg-progress")
            with gr.Row():
                sides = [*_side("without", "Without guidance"), *_side("guided", "With CLIP guidance")]
            history = gr.State([])
            about = gr.Markdown(NO_HISTORY, elem_id="generate-history-about")
            gallery = gr.Gallery(
                label="History",
                height="auto",
                allow_preview=False,
                interactive=False,
                visible=False,
                buttons=[],
                elem_id="generate-history",
                elem_classes="cg-history",
            )
            gr.Markdown(ABOUT)
    inputs = [made[field.name] for field in fields(Request)]
    entries: list[Any] = [history, gallery, about]

    def update(*values: Any) -> Iterator[Update]:
        *asked, before, stopping = values
        shown = None
        for drawing in generate_pairs(state, Request(*asked), stopping):
            before = record(before, drawing)
            filed = _entries(before) if drawing.done else [gr.skip()] * len(entries)
            yield Update([drawing.progress, *_parts(drawing.pair, shown), *filed], drawing.notes)
            shown = drawing.pair

    on_run(draw, notice, update, [*inputs, history], [progress, *sides, *entries], show_progress="hidden")
    gallery.select(_restore, history, [*inputs, *sides], **QUICK)
    strengths = [made["calibrate"], made["strength"]]
    made["model"].input(functools.partial(_strengths, state), made["model"], strengths, **QUICK)
    made["calibrate"].input(lambda on: gr.Slider(visible=not on), made["calibrate"], made["strength"], **QUICK)


def _parts(pair: Pair, shown: Pair | None = None) -> list[Any]:
    """Return what shows a pair: for each side an image, a caption and a download.

    What looks as it did is not sent again: Gradio would write the image's file anew while the browser may read it.
    """
    images = [side.image for side in pair.sides]
    if shown:
        images = [gr.skip() if new == old.image else new for new, old in zip(images, shown.sides, strict=True)]
    return [
        part
        for side, image in zip(pair.sides, images, strict=True)
        for part in (image, side.caption, gr.DownloadButton(value=side.file, interactive=side.file is not None))
    ]


def _entries(history: Sequence[Entry]) -> list[Any]:
    return [history, gr.Gallery(thumbnails(list(history)), visible=True), gr.Markdown(visible=False)]


def _restore(history: list[Entry], event: gr.SelectData) -> list[Any]:
    """Show an entry of the history, and fill the fields with what asked for it."""
    entry = history[event.index]
    values = dict(zip((field.name for field in fields(Request)), astuple(entry.request), strict=True))
    strength = values["strength"]
    values["strength"] = gr.Slider(value=strength, maximum=_most(strength), visible=not values["calibrate"])
    values["calibrate"] = gr.Checkbox(values["calibrate"])
    return [*values.values(), *_parts(entry.pair)]


def _strengths(state: AppState, model: str) -> list[Any]:
    """Show the strength that is tuned for a model, or that it is calibrated where none is."""
    scale = settings_of(state, model).scale
    if scale is None:
        return [gr.Checkbox(True, visible=True), gr.Slider(visible=False)]
    return [gr.Checkbox(False, visible=False), gr.Slider(value=scale, maximum=_most(scale), visible=True)]


def _most(scale: float | None) -> float:
    """Return the slider's end: beyond it the browser would put a tuned strength there without a word."""
    return max(MAX_SCALE, scale or 0.0)
