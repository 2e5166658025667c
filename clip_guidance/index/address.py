"""The address of an index as it may be shown: without the name and the password with which Milvus is asked."""

from __future__ import annotations

import re
from urllib.parse import unquote

_SERVER = re.compile(r"(https?://)(.*@)?([^?#]*)", re.DOTALL)


def public_address(address: str) -> str:
    """Return an address without user, password, query and fragment; a path is returned as it is.

    Example:
        >>> from clip_guidance.index.address import public_address
        >>> public_address("http://root:secret@host:19530"), public_address("photos.index")
        ('http://host:19530', 'photos.index')
    """
    found = _SERVER.match(address)
    return found[1] + found[3] if found else address


def without_secrets(text: str, address: str) -> str:
    """Return a text of somebody who was given the address, with its user and password blotted out."""
    found = _SERVER.match(address)
    if not (found and found[2]):
        return text
    credentials = found[2].removesuffix("@")
    secrets = [credentials, *credentials.split(":", 1)]
    for secret in sorted({*secrets, *map(unquote, secrets)} - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
