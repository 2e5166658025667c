"""The tab Compare: how similar are the images of two sets?"""

from __future__ import annotations

import functools

import gradio as gr

from clip_guidance.report import similarity
from clip_guidance.ui.state import COMPUTE, AppState, as_gradio_error, encode, read_images

Files = list[tuple[str, str | None]] | None


def compare(state: AppState, files_a: Files, files_b: Files, model: str) -> str:
    """Show the cosine similarities of two sets of images as a heat map.

    Args:
        state: The models and folders of the page.
        files_a: Path and caption of each image of the rows; the captions are not used.
        files_b: Path and caption of each image of the columns. Without any, the first set is compared with itself.
        model: Name of the CLIP.

    Returns:
        HTML with the heat map, and the files that could not be read.

    Raises:
        gr.Error: A set holds no image that can be read.
    """
    with as_gradio_error():
        rows = read_images(files_a, "images in the first set")
        columns = read_images(files_b, "images in the second set") if files_b else None
        images_b, failed_b = (columns.images, columns.failed) if columns else (None, [])
        embeds = [encode(state.clip(model), images) for images in (rows, columns or rows)]
        matrix = (embeds[0] @ embeds[1].T).clamp(-1, 1)
        return similarity(matrix, rows.images, images_b, failed=rows.failed + failed_b)._repr_html_()


def tab(state: AppState) -> None:
    """Lay out the tab Compare."""
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
        model = gr.Dropdown(state.clips, value=state.clips[0], label="CLIP", elem_id="compare-model")
        start = gr.Button("Compare", variant="primary", elem_id="compare-start")
    result = gr.HTML(elem_id="compare-result", min_height=120)
    start.click(
        functools.partial(compare, state),
        [first, second, model],
        result,
        **COMPUTE,
    )
