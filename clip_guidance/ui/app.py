"""The page: its tabs, and the server on this machine that shows it."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from clip_guidance.ui import classify, compare, generate, search
from clip_guidance.ui.studio import Studio

TABS: dict[str, Callable[[Studio], None]] = {
    "Generate": generate.tab,
    "Classify": classify.tab,
    "Compare": compare.tab,
    "Search": search.tab,
}
UPLOAD = "100mb"
STYLE = """
.drawn img { width: 100%; height: 100%; object-fit: contain; }
.cg td, .cg th { border-color: var(--line) !important; }
"""


def page(studio: Studio) -> gr.Blocks:
    """All tabs."""
    with gr.Blocks(title="clip_guidance", analytics_enabled=False) as blocks:
        gr.Markdown("# clip_guidance")
        for title, tab in TABS.items():
            with gr.Tab(title, id=title):
                tab(studio)
    return blocks


def serve(
    model: str,
    clip: str | None,
    device: str,
    root: Path,
    host: str,
    port: int,
    on_start: Callable[[str], None],
) -> None:
    """Serves the page until it is interrupted.

    What is uploaded and drawn lies in a folder that is deleted in the end; it is all that the server hands out.

    Args:
        model: the pipeline offered first; it is loaded before the page is shown.
        clip: the CLIP offered first; by default that of the pipeline.
        device: where to compute.
        root: the folder in which images may be searched.
        host: address to listen at.
        port: to listen at.
        on_start: gets the address of the page.

    Raises:
        ValueError: there is no such model or root.
        OSError: the port is taken.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: expected the folder that the page may read (--root), there is none")
    with tempfile.TemporaryDirectory(prefix="clip_guidance-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        studio = Studio(model, clip, device, root, Path(folder) / "drawn")
        studio.drawer.pipeline(generate.settings_of(studio, model))
        blocks = page(studio)
        blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            allowed_paths=[],
            max_file_size=UPLOAD,
            enable_monitoring=False,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            css=STYLE,
        )
        on_start(str(blocks.local_url))
        try:
            threading.Event().wait()
        finally:
            blocks.close(verbose=False)
