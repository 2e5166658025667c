"""The page: its tabs, and the local server that serves them."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from clip_guidance.ui import classify, compare, generate, search
from clip_guidance.ui.hosts import HostCheck
from clip_guidance.ui.pairs import settings_of
from clip_guidance.ui.state import AppState

TABS: dict[str, Callable[[AppState], None]] = {
    "Generate": generate.tab,
    "Classify": classify.tab,
    "Compare": compare.tab,
    "Search": search.tab,
}
MAX_UPLOAD = "100mb"
HERE = Path(__file__).parent


def build_page(state: AppState) -> gr.Blocks:
    """Build the page with all tabs of ``TABS``.

    Args:
        state: The models and folders that the tabs share.

    Returns:
        The page, which is not served yet.
    """
    with gr.Blocks(title="clip_guidance", analytics_enabled=False) as blocks:
        gr.Markdown("# clip_guidance", elem_classes="cg-title")
        for title, tab in TABS.items():
            with gr.Tab(title, id=title):
                tab(state)
    return blocks


def serve(
    model: str,
    clip: str | None,
    device: str,
    root: Path,
    host: str,
    port: int,
    on_start: Callable[[str], None],
    allowed_hosts: Sequence[str] = (),
) -> None:
    """Serve the page until the process is interrupted.

    Uploads and generated images lie in a temporary folder that is deleted at the end. The server hands out no file
    outside of this folder.

    Args:
        model: Pipeline that is selected first; it is loaded before the page is served. A packaged name, a folder, or
            a hub id.
        clip: CLIP that is selected first and steers that pipeline. By default the pipeline's own CLIP steers.
        device: Device to compute on, such as "cpu" or "cuda".
        root: Folder in which images may be searched and indices may be kept.
        host: Address to listen at.
        port: Port to listen at, from 1 to 65535.
        on_start: Called once with the URL of the page.
        allowed_hosts: Further names under which the page is reached; see :class:`~clip_guidance.ui.hosts.HostCheck`.

    Raises:
        ValueError: The model is unknown, or the root is not a folder.
        OSError: The port is in use.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: expected the folder that the page may read (--root), there is none")
    with tempfile.TemporaryDirectory(prefix="clip_guidance-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        state = AppState(model, clip, device, root, Path(folder) / "images")
        state.generator.pipeline(settings_of(state, model))
        blocks = build_page(state)
        blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            allowed_paths=[],
            max_file_size=MAX_UPLOAD,
            enable_monitoring=False,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            css_paths=HERE / "page.css",
            js=(HERE / "page.js").read_text(encoding="utf-8"),
            app_kwargs={"middleware": [Middleware(HostCheck, names=(host, *allowed_hosts))]},
        )
        on_start(str(blocks.local_url))
        try:
            threading.Event().wait()
        finally:
            blocks.close(verbose=False)
