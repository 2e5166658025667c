"""``clip-guidance ui``: a page to draw, classify, compare and search in a browser."""

from __future__ import annotations

import signal
from pathlib import Path

from clip_guidance.cli import _common as common
from clip_guidance.cli import _options as options

LOCAL = ("127.0.0.1", "localhost", "::1")


def command(
    host: options.Host = LOCAL[0],
    port: options.Port = 7860,
    model: options.Pipeline = "emoji",
    clip: options.PageCLIP = None,
    root: options.Root = Path("."),
    device: options.Device = None,
) -> None:
    """Open a page to draw, classify, compare and search images. It stays on this machine; end it with Ctrl-C.

    Example: clip-guidance ui --root photos/
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError(f"the page needs gradio ({error}): pip install 'clip-guidance[ui]'") from None
    common.quiet("transformers", "diffusers")  # in this order: the second makes the first talk
    from clip_guidance.ui.app import serve

    if host not in LOCAL:
        common.narrate("warning", f"whoever reaches {host} can draw here, and search images in {root.resolve()}")
    former = signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # a service that is stopped tidies up as with Ctrl-C
    try:
        serve(model, clip, common.resolve_device(device), root, host, port, lambda url: common.narrate("page", url))
    except KeyboardInterrupt:
        common.narrate("page", "closed")
    finally:
        signal.signal(signal.SIGTERM, former)
