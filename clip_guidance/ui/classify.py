"""The tab Classify: which of the given labels describes each image best?"""

from __future__ import annotations

import functools

import gradio as gr

from clip_guidance.report import classification
from clip_guidance.ui.state import COMPUTE, AppState, as_gradio_error, encode, read_images
from clip_guidance.zero_shot.classifier import ZeroShotClassifier
from clip_guidance.zero_shot.labels import parse_labels

LABELS_PER_IMAGE = 10  # further labels would hide the next image


def classify(
    state: AppState, files: list[tuple[str, str | None]] | None, labels: str, multi_label: bool, model: str
) -> str:
    """Classify images and show the most likely labels of each as bars.

    Args:
        state: The models and folders of the page.
        files: Path and caption of each image; the caption is not used.
        labels: Labels, separated by commas or line breaks; in quotes where one holds a comma.
        multi_label: Whether several labels may hold for an image, or none. The probabilities of the labels then do not
            add up to 1.
        model: Name of the CLIP.

    Returns:
        HTML with at most ``LABELS_PER_IMAGE`` labels per image, and the files that could not be read.

    Raises:
        gr.Error: No image or no label is given, no image can be read, or a label is given twice.
    """
    with as_gradio_error():
        classifier = ZeroShotClassifier(state.clip(model), parse_labels(labels or ""), multi_label=multi_label)
        images = read_images(files)
        result = classifier.classify_embeds(encode(state.clip(model), images))
        return classification(result, images.images, k=LABELS_PER_IMAGE, failed=images.failed)._repr_html_()


def tab(state: AppState) -> None:
    """Lay out the tab Classify."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            files = gr.Gallery(label="Images", type="filepath", columns=3, height=240, elem_id="classify-files")
            hint = "Separated by commas; in quotes where one holds a comma."
            labels = gr.Textbox(label="Labels", info=hint, lines=2, elem_id="classify-labels")
            multi_label = gr.Checkbox(label="Several labels may hold, or none", elem_id="classify-multi-label")
            model = gr.Dropdown(state.clips, value=state.clips[0], label="CLIP", elem_id="classify-model")
            start = gr.Button("Classify", variant="primary", elem_id="classify-start")
        with gr.Column(scale=3, min_width=320):
            result = gr.HTML(elem_id="classify-result", min_height=120)
    gr.on(
        [start.click, labels.submit],
        functools.partial(classify, state),
        [files, labels, multi_label, model],
        result,
        **COMPUTE,
    )
