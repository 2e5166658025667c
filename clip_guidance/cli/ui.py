"""``clip-guidance ui``: a browser page to generate, classify, compare and search images."""

from __future__ import annotations

import functools
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
    allow_host: options.AllowedHosts = None,
    device: options.Device = None,
) -> None:
    """Serve a page to generate, classify, compare and search images; Ctrl-C stops it.

    By default only this machine can reach it.

    Example: clip-guidance ui --root photos/
    """
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ValueError(f"the page needs gradio ({error}): pip install 'clip-guidance[ui]'") from None
    common.quiet("transformers", "diffusers")  # in this order: importing diffusers makes transformers print advice
    from clip_guidance.ui.app import serve

    if host not in LOCAL:
        common.narrate("warning", f"whoever reaches {host} can draw here, and search images in {root.resolve()}")
    # A service manager stops the server with SIGTERM, which must clean up as Ctrl-C does.
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        started = functools.partial(common.narrate, "page")
        serve(model, clip, common.resolve_device(device), root, host, port, started, allow_host or ())
    except KeyboardInterrupt:
        common.narrate("page", "closed")
    finally:
        signal.signal(signal.SIGTERM, former)
