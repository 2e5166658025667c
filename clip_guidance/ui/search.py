"""The tab Search: which images of an index match a text, an image, or both?"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from clip_guidance.images.find import walk_images
from clip_guidance.images.load import ImageError, Skipped, load_image
from clip_guidance.index import ImageIndex, ImageIndexError
from clip_guidance.index.query import Term, parse_query
from clip_guidance.index.results import Changes
from clip_guidance.ui.events import FORM, RESULT, RunButton, Update, notice_line, on_run
from clip_guidance.ui.state import AppState, read_images, whole_number

if TYPE_CHECKING:
    from PIL import Image

BUILD = "Build the index, or bring it up to date"
MAX_FOUND = 100
EMPTY = (
    '<div class="cg-empty"><b>Search</b> finds the images of an index that match a text, an image, or both. No index '
    f"yet? Open <b>{BUILD}</b>, name a folder of images, and add them; nothing leaves this machine.</div>"
)
NOTHING = '<div class="cg-empty">No image of this index matches the filter. Change or empty <b>Only where</b>.</div>'
EXAMPLES = ["red apple", "a rocket in the sky", "2 * red apple - a worm"]
THUMBNAIL = 512  # pixels of the longer side: sharp at the size of the gallery, light to send


@dataclass
class SearchResults:
    """The images that a query found.

    Attributes:
        images: Each image with its caption (cosine and file name), best first.
        failed: A message for each image that could not be loaded, and the warnings of the search.
    """

    images: list[tuple[Image.Image, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def build(state: AppState, folder: str, index: str, model: str) -> Iterator[str]:
    """Add the images of a folder to an index; create the index if it does not exist.

    Args:
        state: The models and folders of the page.
        folder: Folder of images, inside ``state.root``.
        index: Folder of the index, inside ``state.root``.
        model: Name of the CLIP for a new index; an existing index keeps its own.

    Yields:
        Markdown: the number of images so far, and at the end the counts, the files that could not be read and the
            warnings.

    Raises:
        ValueError: A folder lies outside of the root, or the index cannot be opened.
    """
    images, address = state.resolve_path(folder, "Images"), str(state.resolve_path(index, "Index"))
    total = Changes()
    if not images.is_dir():
        raise ValueError(f"Images: there is no folder {folder} in {state.root}")
    try:
        with ImageIndex.open(str(address), create=False) as made:
            model = made.model
    except ImageIndexError:  # there is no index yet; any other problem is raised when it is opened with the CLIP
        pass
    found = list(walk_images(images))
    allowed = [path for path in found if state.may_read(path)]
    total.skipped += [Skipped(str(path), state.outside) for path in found if not state.may_read(path)]
    with ImageIndex.open(address, state.clip(model)) as opened:
        told: list[str] = []
        for changes in _recorded(opened.iter_add(allowed), told):
            total += changes
            yield f"{len(opened)} images in the index so far"
        failed = "".join(f"\n- `{entry.path}`: {entry.reason}" for entry in total.skipped)
        failed += "".join(f"\n- {message}" for message in told)
        counts = f"{len(total.added)} added, {total.unchanged} unchanged, {len(total.skipped)} failed"
        counts += f", {len(total.repaired)} of damaged vectors encoded anew" if total.repaired else ""
        yield f"**{len(opened)} images in the index** of the CLIP {opened.model}: {counts}{failed}"


def _recorded(steps: Iterator[Changes], told: list[str]) -> Iterator[Changes]:
    """Take steps, and add the warnings on the way to a list: between two steps the page does other things."""
    while True:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = next(steps, None)
        told += [str(each.message) for each in caught]
        if found is None:
            return
        yield found


def search(
    state: AppState, index: str, text: str, files: list[tuple[str, str | None]] | None, where: str, count: float
) -> SearchResults:
    """Find the images of an index that match a query best.

    Args:
        state: The models and folders of the page.
        index: Folder of the index, inside ``state.root``.
        text: A text, or a weighted sum of texts: ``2 * red apple - a worm``.
        files: Path and caption of images; each image is a further term of the sum, with weight 1.
        where: A filter of the metadata, such as ``year >= 2020``; empty for all images.
        count: Number of images to find, at least 1.

    Returns:
        The thumbnails, best first.

    Raises:
        ValueError: The index does not exist, the query is empty, or the query or the filter cannot be parsed.
    """
    address = state.resolve_path(index, "Index")
    if not address.exists():
        raise ValueError(f"Index: there is no {index} in {state.root}; open {BUILD!r} and add a folder of images")
    terms = parse_query(text) if text and text.strip() else []
    if any(isinstance(term.source, Path) for term in terms):
        raise ValueError(f"Text: {text}: give the image in its own field; a page opens no path of a query")
    if files:
        terms += [Term(image) for image in read_images(files, "Image").images]
    if not terms:
        raise ValueError("Text is empty: type what to search for, or give an image, or both")
    with ImageIndex.open(str(address), create=False) as made:
        model = made.model
    opening = ImageIndex.open(str(address), state.clip(model), create=False)
    with opening as opened, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        hits = opened.search(terms, whole_number("Images shown", count, 1, MAX_FOUND), where.strip() or None)
    results = SearchResults(failed=[str(warning.message) for warning in told])
    for hit in hits:
        try:
            if not state.may_read(hit.path):
                raise ImageError(hit.path, state.outside)
            image = load_image(hit.path)
        except ImageError as error:
            results.failed.append(str(error))
            continue
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        results.images.append((image, f"{hit.score:.3f} · {Path(hit.path).name}"))
    return results


def tab(state: AppState) -> None:
    """Lay out the tab Search: the results lie right below the query, whatever else is open."""
    with gr.Column(elem_classes=["cg-tab", FORM]):
        with gr.Row(elem_classes="cg-line"):
            text = gr.Textbox(
                "",
                label="Text, or a sum of texts",
                placeholder="2 * red apple - a worm",
                max_lines=1,
                scale=6,
                min_width=200,
                elem_id="search-text",
            )
            find = RunButton.make("Search", "Searching…", "search-start", scale=1, min_width=100)
        with gr.Row():
            with gr.Column(scale=4, min_width=320, elem_classes=RESULT):
                notice = notice_line("search-notice")
                empty = gr.HTML(EMPTY, elem_id="search-empty")
                gallery = _found()
            with gr.Column(scale=2, min_width=280):
                gr.Examples([[each] for each in EXAMPLES], text, elem_id="search-examples", api_visibility="private")
                files = gr.Gallery(label="Image", type="filepath", columns=3, height=150, elem_id="search-files")
                where = gr.Textbox(
                    "",
                    label="Only where",
                    info="album = summer and year >= 2020",
                    max_lines=1,
                    elem_id="search-where",
                )
                count = gr.Number(12, label=f"Images shown, 1 to {MAX_FOUND}", elem_id="search-count")
                index = gr.Textbox(
                    "photos.index",
                    label="Index",
                    info=f"A folder in {state.root.name or state.root}",
                    max_lines=1,
                    elem_id="search-index",
                )
                _build_panel(state, index)

    def update(*values: Any) -> Iterator[Update]:
        found = search(state, *values)
        none = not found.images
        shown = [gr.Gallery(found.images, visible=not none), gr.HTML(NOTHING, visible=none)]
        yield Update(shown, found.failed)

    on_run(find, notice, update, [index, text, files, where, count], [gallery, empty])


def _found() -> gr.Gallery:
    return gr.Gallery(
        label="Found",
        format="png",
        height="auto",
        object_fit="contain",
        interactive=False,
        visible=False,
        elem_id="search-result",
        elem_classes="cg-found",
    )


def _build_panel(state: AppState, index: gr.Textbox) -> None:
    """Lay out what makes an index or brings it up to date."""
    with gr.Accordion(BUILD, open=False, elem_id="search-more", elem_classes=["cg-tab", FORM]):
        folder = gr.Textbox(
            "",
            label="Images",
            info=f"A folder in {state.root.name or state.root}",
            max_lines=1,
            elem_id="search-folder",
        )
        model = gr.Dropdown(state.clips, value=state.clips[0], label="CLIP", elem_id="search-model")
        start = RunButton.make("Add the images", "Adding…", "search-build", "secondary")
        notice = notice_line("search-build-notice")
        done = gr.Markdown(elem_id="search-status")

    def update(*values: Any) -> Iterator[Update]:
        for told in build(state, *values):
            yield Update([told])

    on_run(start, notice, update, [folder, index, model], [done])
