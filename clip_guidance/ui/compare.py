"""The tab Compare: how similar are the images of two sets?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from clip_guidance.report import similarity
from clip_guidance.ui.events import FORM, QUICK, RESULT, RunButton, Update, notice_line, on_run
from clip_guidance.ui.state import AppState, encode, read_images

Files = list[tuple[str, str | None]] | None
EMPTY = (
    '<div class="cg-empty"><b>Compare</b> shows how alike images are: the cosine of each image of the first set with '
    "each of the second, from -1 to 1. Without a second set, the first is compared with itself.</div>"
)
EXAMPLE = (("rocket", "red apple", "dog face"), ("another rocket", "red apple"))


def compare(state: AppState, files_a: Files, files_b: Files, model: str) -> Update:
    """Show the cosine similarities of two sets of images as a heat map.

    Args:
        state: The models and folders of the page.
        files_a: Path and caption of each image of the rows; the captions are not used.
        files_b: Path and caption of each image of the columns. Without any, the first set is compared with itself.
        model: Name of the CLIP.

    Returns:
        HTML with the heat map, and the files that could not be read; and the notes.

    Raises:
        ValueError: A set holds no image that can be read.
    """
    sets = [read_images(files_a, "First set"), *([read_images(files_b, "Second set")] if files_b else [])]
    embeds = [encode(state.clip(model), images) for images in sets]
    matrix = (embeds[0] @ embeds[-1].T).clamp(-1, 1)
    images_b = sets[1].images if files_b else None
    failed = [entry for images in sets for entry in images.failed]
    shown = similarity(matrix, sets[0].images, images_b, failed=failed)._repr_html_()
    return Update([shown], [note for images in sets for note in images.notes])


def tab(state: AppState) -> None:
    """Lay out the tab Compare."""
    with gr.Column(elem_classes=["cg-tab", FORM]):
        with gr.Row():
            first = gr.Gallery(label="First set: rows", type="filepath", columns=4, height=200, elem_id="compare-rows")
            second = gr.Gallery(
                label="Second set: columns (none: the first with itself)",
                type="filepath",
                columns=4,
                height=200,
                elem_id="compare-columns",
            )
        with gr.Row(elem_classes="cg-line"):
            model = gr.Dropdown(state.clips, value=state.clips[0], label="CLIP", elem_id="compare-model")
            run = RunButton.make("Compare", "Comparing…", "compare-start", min_width=100)
            example = gr.Button("Example", min_width=100, elem_id="compare-example")
        with gr.Column(elem_classes=RESULT):
            notice = notice_line("compare-notice")
            result = gr.HTML(EMPTY, elem_id="compare-result", min_height=120)

    def update(*values: Any) -> Iterator[Update]:
        yield compare(state, *values)

    on_run(run, notice, update, [first, second, model], [result])
    example.click(
        lambda: [*(state.examples(*names) for names in EXAMPLE), ""], None, [first, second, notice], **QUICK
    )
