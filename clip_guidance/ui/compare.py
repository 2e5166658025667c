"""The tab that compares: how alike are the images of two sets?"""

from __future__ import annotations

import functools

import gradio as gr

from clip_guidance.metrics.similarity import image_similarity
from clip_guidance.report import similarity
from clip_guidance.ui.studio import COMPUTE, Studio, read, told

Files = list[tuple[str, str | None]] | None


def compare(studio: Studio, files_a: Files, files_b: Files, model: str) -> str:
    """A heat map of cosines.

    Args:
        studio: has the models.
        files_a: path and caption of each image of the rows.
        files_b: those of the columns; without them, the first set is compared with itself.
        model: the CLIP.

    Returns:
        HTML.

    Raises:
        gr.Error: a set has no image that can be read.
    """
    with told():
        rows = read(files_a, "images in the first set")
        columns = read(files_b, "images in the second set") if files_b else None
        images_b, failed_b = (columns.images, columns.failed) if columns else (None, [])
        matrix = image_similarity(studio.clip(model), rows.images, images_b)
        return similarity(matrix, rows.images, images_b, failed=rows.failed + failed_b)._repr_html_()


def tab(studio: Studio) -> None:
    """Lays out the tab."""
    with gr.Row():
        first = gr.Gallery(label="First set: rows", type="filepath", columns=4, height=240, elem_id="compare-rows")
        second = gr.Gallery(
            label="Second set: columns (none: the first with itself)",
            type="filepath",
            columns=4,
            height=240,
            elem_id="compare-columns",
        )
    with gr.Row(equal_height=True):
        model = gr.Dropdown(studio.clips, value=studio.clips[0], label="CLIP", elem_id="compare-model")
        start = gr.Button("Compare", variant="primary", elem_id="compare-start")
    result = gr.HTML(elem_id="compare-result", min_height=120)
    start.click(
        functools.partial(compare, studio),
        [first, second, model],
        result,
        **COMPUTE,
    )
