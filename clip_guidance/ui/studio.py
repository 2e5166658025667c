"""What the tabs share: the models in memory, the folder that may be read, and errors as the page shows them."""

from __future__ import annotations

import functools
import html
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from clip_guidance.clip.hub import PACKAGED, packaged_models
from clip_guidance.generation.generator import ImageGenerator
from clip_guidance.images.load import load_images

if TYPE_CHECKING:
    from PIL import Image

    from clip_guidance.clip import CLIP

#: Of every event that computes: one at a time, for the models are shared; and no interface for other programs.
COMPUTE: dict[str, Any] = {"concurrency_id": "compute", "concurrency_limit": 1, "api_visibility": "private"}
MAX_IMAGES = 200  # images in a set: each is held in memory, and no more are shown


@dataclass
class Images:
    """Images that were given to the page.

    Attributes:
        images: those that can be read; ``filename`` is the name that the user knows.
        failed: ``path`` and ``reason`` of the others.
    """

    images: list[Image.Image] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)


class Studio:
    """The models of a page, and what it may read and write.

    Args:
        model: the pipeline offered first.
        clip: the CLIP offered first, which also steers that pipeline; by default that of the pipeline.
        device: where to compute.
        root: the folder in which images may be searched and indices kept.
        downloads: an empty folder for what is drawn.
    """

    def __init__(self, model: str, clip: str | None, device: str, root: Path, downloads: Path) -> None:
        self.model, self.clip_name, self.device = model, clip, device
        self.root, self.downloads = root.resolve(), downloads
        self.drawer = ImageGenerator(device)
        self.clip = functools.lru_cache(maxsize=2)(self._load_clip)

    @property
    def models(self) -> list[str]:
        """Pipelines to choose from."""
        packaged = [name for name in packaged_models() if (PACKAGED / name / "unet").is_dir()]
        return list(dict.fromkeys([self.model, *packaged]))

    @property
    def clips(self) -> list[str]:
        """CLIPs to choose from."""
        return list(dict.fromkeys([*([self.clip_name] if self.clip_name else []), *packaged_models()]))

    def guide(self, model: str) -> str | None:
        """The CLIP that steers a pipeline; None for its own."""
        return self.clip_name if model == self.model else None

    def inside(self, path: str) -> Path:
        """A path that was typed, taken from the root.

        Raises:
            ValueError: it is empty, or lies elsewhere.
        """
        if not path.strip():
            raise ValueError(f"expected a folder in {self.root}, got none")
        found = (self.root / Path(path.strip()).expanduser()).resolve()
        if not found.is_relative_to(self.root):
            raise ValueError(f"{path}: lies outside of {self.root}, the folder that this page may read (--root)")
        return found

    def _load_clip(self, name: str) -> CLIP:
        from clip_guidance.clip import CLIP

        return CLIP.from_pretrained(name).to(self.device)


def read(files: Sequence[tuple[str, str | None]] | None, what: str = "an image") -> Images:
    """Reads the images of a gallery; the unreadable ones are told beside the others.

    Args:
        files: path and caption of each, as ``gr.Gallery`` gives them.
        what: is expected, for the error where there is none.

    Raises:
        ValueError: there is none, none can be read, or there are more than ``MAX_IMAGES``.
    """
    paths = [path for path, _ in files or ()]
    if not paths or len(paths) > MAX_IMAGES:
        raise ValueError(f"expected {what}, at most {MAX_IMAGES}, got {len(paths) or 'none'}")
    found = Images()
    for batch in load_images(paths, on_error="skip"):
        found.failed += [{"path": Path(entry.path).name, "reason": entry.reason} for entry in batch.skipped]
        for image, name in zip(batch.images, batch.names, strict=True):
            image.filename = Path(name).name  # type: ignore[attr-defined]  # the upload's folder says nothing
            found.images.append(image)
    if not found.images:
        raise ValueError("; ".join(f"{entry['path']}: {entry['reason']}" for entry in found.failed))
    return found


@contextmanager
def told() -> Iterator[None]:
    """Inside, what the library refuses is told on the page in the library's own words."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error


def warn(message: str) -> None:
    """Tells something on the page that keeps nothing from being done."""
    gr.Warning(html.escape(message))
