"""Refuse requests that name another host: a page elsewhere must not read this one through its visitor's browser.

A site can let its own name point at this machine (DNS rebinding); the browser then takes both for one site and hands it
the answers. Such a request still carries the site's name in its header ``Host``.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class HostCheck:
    """Pass on requests whose ``Host`` is one of this machine's, in Starlette's middleware.

    Args:
        app: What answers the requests.
        names: Names under which the page is served, beside ``localhost`` and the machine's own name. An address in
            digits always passes, since nobody else's name can be in it.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()) -> None:
        self.app = app
        self.names = {name.lower() for name in ("localhost", socket.gethostname(), *names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "") if scope["type"] in ("http", "websocket") else None
        if host is None or self.allows(host):
            await self.app(scope, receive, send)
            return
        text = "This page is not served under that name; clip-guidance ui --allow-host NAME adds one.\n"
        await PlainTextResponse(text, status_code=403)(scope, receive, send)

    def allows(self, host: str) -> bool:
        """Return whether a header ``Host``, such as ``localhost:7860``, names this machine."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # half an address of version 6
            return False
        return name in self.names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
