"""The tab that searches: the images of an index that match a text, an image, or both."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from clip_guidance.images.load import ImageError, load_image
from clip_guidance.index import ImageIndex, ImageIndexError
from clip_guidance.index.query import Term, parse_query
from clip_guidance.index.results import Changes
from clip_guidance.ui.studio import COMPUTE, Studio, read, told, warn

if TYPE_CHECKING:
    from PIL import Image

THUMBNAIL = 512  # pixels of the longer side


@dataclass
class Shown:
    """Images that were found, best first, with their names and cosines; ``failed`` holds those that are gone."""

    images: list[tuple[Image.Image, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def build(studio: Studio, folder: str, index: str, model: str) -> Iterator[str]:
    """Adds the images of a folder to an index, which is made if there is none.

    Args:
        studio: has the models.
        folder: of images, in the studio's root.
        index: a folder in the studio's root.
        model: the CLIP of a new index; one that exists keeps its own.

    Yields:
        How far it is, then what was added and what could not be read: Markdown.

    Raises:
        gr.Error: a folder lies outside of the root, or the index cannot be opened.
    """
    with told():
        images, address, total = studio.inside(folder), str(studio.inside(index)), Changes()
        if not images.is_dir():
            raise ValueError(f"{folder}: there is no such folder in {studio.root}")
        try:
            with ImageIndex.open(address, create=False) as made:
                model = made.model
        except ImageIndexError:  # there is none yet; what else is wrong is told when it is opened with the CLIP
            pass
        with ImageIndex.open(address, studio.clip(model)) as opened:
            for changes in opened.iter_add([images]):
                total += changes
                yield f"{len(opened)} images in the index so far"
            failed = "".join(f"\n- `{entry.path}`: {entry.reason}" for entry in total.skipped)
            counts = f"{len(total.added)} added, {total.unchanged} unchanged, {len(total.skipped)} failed"
            yield f"**{len(opened)} images in the index** of the CLIP {opened.model}: {counts}{failed}"


def search(
    studio: Studio, index: str, text: str, files: list[tuple[str, str | None]] | None, where: str, count: float
) -> Shown:
    """The images that match best.

    Args:
        studio: has the models.
        index: a folder in the studio's root.
        text: a text, or a weighted sum: ``2 * red apple - a worm``.
        files: path and caption of images, which are added to the text.
        where: a filter of metadata.
        count: images shown.

    Raises:
        gr.Error: there is no such index, the query is empty, or it or the filter cannot be read.
    """
    with told():
        address = str(studio.inside(index))
        terms = parse_query(text) if text and text.strip() else []
        if any(isinstance(term.source, Path) for term in terms):
            raise ValueError(f"{text}: give the image beside the text; a page opens no path of a query")
        if files:
            terms += [Term(image) for image in read(files).images]
        if not terms:
            raise ValueError("expected a text, an image, or both to search for, got neither")
        with ImageIndex.open(address, create=False) as made:
            model = made.model
        with ImageIndex.open(address, studio.clip(model), create=False) as opened:
            hits = opened.search(terms, int(count), where.strip() or None)
        shown = Shown()
        for hit in hits:
            try:
                image = load_image(hit.path)
            except ImageError as error:
                shown.failed.append(str(error))
                continue
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            shown.images.append((image, f"{hit.score:.3f} · {Path(hit.path).name}"))
        return shown


def tab(studio: Studio) -> None:
    """Lays out the tab."""
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            index = gr.Textbox("photos.index", label="Index", info=f"A folder in {studio.root}", elem_id="search-index")
            with gr.Accordion("Build it, or bring it up to date", open=False, elem_id="search-more"):
                folder = gr.Textbox(label="Images", info=f"A folder in {studio.root}", elem_id="search-folder")
                model = gr.Dropdown(studio.clips, value=studio.clips[0], label="CLIP", elem_id="search-model")
                start = gr.Button("Add the images", elem_id="search-build")
            done = gr.Markdown(elem_id="search-status")
            text = gr.Textbox(label="Text", info="Or a sum: 2 * red apple - a worm", elem_id="search-text")
            files = gr.Gallery(label="Image", type="filepath", columns=3, height=180, elem_id="search-files")
            where = gr.Textbox(label="Only where", info="album = summer and year >= 2020", elem_id="search-where")
            count = gr.Slider(1, 100, 12, step=1, label="Images shown", elem_id="search-count")
            find = gr.Button("Search", variant="primary", elem_id="search-start")
        with gr.Column(scale=4, min_width=320):
            gallery = gr.Gallery(
                label="Found",
                format="png",
                columns=4,
                height=640,
                object_fit="contain",
                interactive=False,
                elem_id="search-result",
            )

    def shown(*values: Any) -> list[tuple[Image.Image, str]]:
        found = search(studio, *values)
        for message in found.failed:
            warn(message)
        return found.images

    start.click(functools.partial(build, studio), [folder, index, model], done, **COMPUTE)
    gr.on([find.click, text.submit], shown, [index, text, files, where, count], gallery, **COMPUTE)
