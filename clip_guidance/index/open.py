"""Opening an index: which store an address means, and whether its vectors come from the CLIP at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from clip_guidance._files import shorten
from clip_guidance.index.address import public_address
from clip_guidance.index.milvus import MilvusStore
from clip_guidance.index.store import Store
from clip_guidance.index.vectors import ImageIndexError, short_name

if TYPE_CHECKING:
    from clip_guidance.clip import DualEncoder


def open_store(
    address: str, clip: DualEncoder | None, create: bool, dtype: str, catalogue: str | os.PathLike[str] | None
) -> Store:
    """Open a store, or make it; see :meth:`ImageIndex.open`."""
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype: expected 'float32' or 'float16', got {dtype!r}")
    meta: dict[str, Any] | None = None
    if clip is not None:
        meta = {"fingerprint": clip.fingerprint(), "model": _name(clip), "dtype": dtype}
        meta["dim"] = clip.projection_dim
    store = _store(address, meta if create else None, catalogue)
    if meta is not None and store.meta["fingerprint"] != meta["fingerprint"]:
        store.close()
        raise other_model(store, meta["fingerprint"])
    return store


def other_model(store: Store, fingerprint: str) -> ImageIndexError:
    """Build the error that refuses vectors of another CLIP."""
    model = shorten(store.meta["model"], 30, end=True)
    made = f"was made with the CLIP {model} (fingerprint {store.meta['fingerprint']:.16})"
    return ImageIndexError(
        f"{shorten(str(store.folder), 60, end=True)}: {made}, this one's is {fingerprint:.16}: their vectors cannot be "
        "compared; use that CLIP, or index the images anew in another folder"
    )


def _store(address: str, meta: dict[str, Any] | None, catalogue: str | os.PathLike[str] | None) -> Store:
    """Open the store that the address names."""
    if not _is_milvus(address):
        if catalogue is not None:
            raise ValueError(f"catalogue: goes with Milvus; the folder {short_name(Path(address))} is its own")
        return Store(Path(address).expanduser(), meta)
    if address.endswith(".db"):
        address = os.path.abspath(os.path.expanduser(address))
    return MilvusStore(Path(catalogue or _default_catalogue(address)).expanduser(), meta, address)


def _is_milvus(address: str) -> bool:
    return address.startswith(("http://", "https://")) or address.endswith(".db")


def _default_catalogue(address: str) -> Path:
    """Choose where the catalogue lies by default: beside the file, or among the user's data."""
    if address.endswith(".db"):
        return Path(f"{address}.catalogue")
    parts = urlsplit(public_address(address))
    home = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    try:
        place = "-".join(filter(None, (parts.hostname, str(parts.port or ""), *parts.path.split("/"))))
    except ValueError as error:
        raise ImageIndexError(f"{public_address(address)}: {error}") from None
    return home / "clip_guidance" / "indices" / place


def _name(clip: DualEncoder) -> str:
    """Name the CLIP so that it can be loaded from anywhere."""
    name = str(clip.name_or_path)
    return os.path.abspath(name) if os.sep in name and os.path.isdir(name) else name
