"""The tab that classifies: which of these labels describes each image best?"""

from __future__ import annotations

import functools
import re

import gradio as gr

from clip_guidance.report import classification
from clip_guidance.ui.studio import COMPUTE, Studio, read, told
from clip_guidance.zero_shot.classifier import ZeroShotClassifier

SHOWN = 10  # labels for each image


def classify(
    studio: Studio, files: list[tuple[str, str | None]] | None, labels: str, multi_label: bool, model: str
) -> str:
    """Bars of the likeliest labels beside each image.

    Args:
        studio: has the models.
        files: path and caption of each image.
        labels: separated by commas or lines.
        multi_label: whether several may hold, or none.
        model: the CLIP.

    Returns:
        HTML.

    Raises:
        gr.Error: there is no image or no label, no image can be read, or a label is given twice.
    """
    with told():
        given = [label for label in re.split(r"[,\n]", labels or "") if label.strip()]
        classifier = ZeroShotClassifier(studio.clip(model), given, multi_label=multi_label)
        images = read(files)
        result = classifier(images.images)
        return classification(result, images.images, k=SHOWN, failed=images.failed)._repr_html_()


def tab(studio: Studio) -> None:
    """Lays out the tab."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            files = gr.Gallery(label="Images", type="filepath", columns=3, height=240, elem_id="classify-files")
            labels = gr.Textbox(label="Labels", info="Separated by commas.", lines=2, elem_id="classify-labels")
            multi_label = gr.Checkbox(label="Several labels may hold, or none", elem_id="classify-multi-label")
            model = gr.Dropdown(studio.clips, value=studio.clips[0], label="CLIP", elem_id="classify-model")
            start = gr.Button("Classify", variant="primary", elem_id="classify-start")
        with gr.Column(scale=3, min_width=320):
            result = gr.HTML(elem_id="classify-result", min_height=120)
    gr.on(
        [start.click, labels.submit],
        functools.partial(classify, studio),
        [files, labels, multi_label, model],
        result,
        **COMPUTE,
    )
