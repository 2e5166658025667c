"""The tab Classify: which of the given labels describes each image best?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from clip_guidance.report import classification
from clip_guidance.ui.events import FORM, QUICK, RESULT, RunButton, Update, notice_line, on_run
from clip_guidance.ui.state import AppState, encode, read_images
from clip_guidance.zero_shot.classifier import ZeroShotClassifier
from clip_guidance.zero_shot.labels import parse_labels

LABELS_PER_IMAGE = 10  # further labels would hide the next image
EMPTY = (
    '<div class="cg-empty"><b>Classify</b> names the labels that describe each image best. Add images, type what '
    "they may show, such as <b>rocket, red apple, dog face</b>, or try the example.</div>"
)
EXAMPLE = ("rocket", "red apple", "dog face")


def classify(
    state: AppState, files: list[tuple[str, str | None]] | None, labels: str, multi_label: bool, model: str
) -> Update:
    """Classify images and show the most likely labels of each as bars.

    Args:
        state: The models and folders of the page.
        files: Path and caption of each image; the caption is not used.
        labels: Labels, separated by commas or line breaks; in quotes where one holds a comma.
        multi_label: Whether several labels may hold for an image, or none. The probabilities of the labels then do not
            add up to 1.
        model: Name of the CLIP.

    Returns:
        HTML with at most ``LABELS_PER_IMAGE`` labels per image, and the files that could not be read; and the notes.

    Raises:
        ValueError: No image or no label is given, no image can be read, or a label is given twice.
    """
    if not (parsed := parse_labels(labels or "")):
        raise ValueError("Labels is empty: type what the images may show, separated by commas")
    images = read_images(files, "Images")
    classifier = ZeroShotClassifier(state.clip(model), parsed, multi_label=multi_label)
    result = classifier.classify_embeds(encode(state.clip(model), images))
    shown = classification(result, images.images, k=LABELS_PER_IMAGE, failed=images.failed)
    return Update([shown._repr_html_()], images.notes)


def tab(state: AppState) -> None:
    """Lay out the tab Classify."""
    with gr.Row(elem_classes="cg-tab"):
        with gr.Column(scale=2, min_width=280, elem_classes=FORM):
            files = gr.Gallery(label="Images", type="filepath", columns=3, height=200, elem_id="classify-files")
            hint = "Separated by commas; in quotes where one holds a comma."
            labels = gr.Textbox("", label="Labels", info=hint, lines=2, elem_id="classify-labels")
            multi_label = gr.Checkbox(label="Several labels may hold, or none", elem_id="classify-multi-label")
            model = gr.Dropdown(state.clips, value=state.clips[0], label="CLIP", elem_id="classify-model")
            with gr.Row():
                run = RunButton.make("Classify", "Classifying…", "classify-start", min_width=100)
                example = gr.Button("Example", min_width=100, elem_id="classify-example")
        with gr.Column(scale=3, min_width=320, elem_classes=RESULT):
            notice = notice_line("classify-notice")
            result = gr.HTML(EMPTY, elem_id="classify-result", min_height=120)

    def update(*values: Any) -> Iterator[Update]:
        yield classify(state, *values)

    on_run(run, notice, update, [files, labels, multi_label, model], [result])
    example.click(
        lambda: [state.examples(*EXAMPLE), ", ".join(EXAMPLE), ""], None, [files, labels, notice], **QUICK
    )
