"""What the tabs share: loaded models, the readable folder, uploads, and errors."""

from __future__ import annotations

import functools
import html
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from clip_guidance.clip import CLIP, DualEncoder
from clip_guidance.clip.domain import DomainCheck
from clip_guidance.clip.hub import PACKAGED, packaged_models
from clip_guidance.generation.generator import ImageGenerator
from clip_guidance.images.load import load_images

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

#: Options of every event that computes. Only one runs at a time, because the models are shared; no event is an API.
COMPUTE: dict[str, Any] = {"concurrency_id": "compute", "concurrency_limit": 1, "api_visibility": "private"}
MAX_IMAGES = 200  # per set: all are held in memory, and a report shows no more
ERROR_SECONDS = 20  # an error lies over all tabs, so it goes away by itself


@dataclass
class UploadedImages:
    """Images that the user has uploaded.

    Attributes:
        images: The readable images; ``filename`` of each is its name without the upload's folder.
        failed: ``path`` (the file name) and ``reason`` of each unreadable image.
    """

    images: list[Image.Image] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)


class AppState:
    """The models of a page, and the folders that it may read and write.

    Models are loaded when they are first needed; the two CLIPs that were used last stay in memory.

    Args:
        model: Pipeline that is selected first: a packaged name, a folder, or a hub id.
        clip: CLIP that is selected first and steers that pipeline. By default the pipeline's own CLIP steers.
        device: Device to compute on, such as "cpu" or "cuda".
        root: Folder in which images may be searched and indices may be kept.
        downloads: Folder for the generated images.

    Attributes:
        generator: Generates images with the selected pipeline.
        clip: Function from the name of a CLIP to the loaded model.
    """

    def __init__(self, model: str, clip: str | None, device: str, root: Path, downloads: Path) -> None:
        self.model, self.clip_name, self.device = model, clip, device
        self.root, self.downloads = root.resolve(), downloads
        self.generator = ImageGenerator(device)
        self.clip = functools.lru_cache(maxsize=2)(self._load_clip)

    @property
    def models(self) -> list[str]:
        """Names of the pipelines to choose from."""
        packaged = [name for name in packaged_models() if (PACKAGED / name / "unet").is_dir()]
        return list(dict.fromkeys([self.model, *packaged]))

    @property
    def clips(self) -> list[str]:
        """Names of the CLIPs to choose from."""
        return list(dict.fromkeys([*([self.clip_name] if self.clip_name else []), *packaged_models()]))

    def steering_clip(self, model: str) -> str | None:
        """Return the name of the CLIP that steers a pipeline; None for the pipeline's own."""
        return self.clip_name if model == self.model else None

    def resolve_path(self, path: str) -> Path:
        """Resolve a path that the user typed; a relative one starts at the root.

        Raises:
            ValueError: The path is empty, or lies outside of the root, also through a link.
        """
        if not path.strip():
            raise ValueError(f"expected a folder in {self.root}, got none")
        found = (self.root / Path(path.strip()).expanduser()).resolve()
        if not self.may_read(found):
            raise ValueError(f"{path}: {self.outside}")
        return found

    def may_read(self, path: str | Path) -> bool:
        """Return whether a file or folder lies in the root, wherever links lead."""
        return Path(path).resolve().is_relative_to(self.root)

    @property
    def outside(self) -> str:
        """The reason why a path is not read."""
        return f"lies outside of {self.root}, the folder that this page may read (--root)"

    def _load_clip(self, name: str) -> DualEncoder:
        return CLIP.from_pretrained(name).to(self.device)


def read_images(files: Sequence[tuple[str, str | None]] | None, what: str = "an image") -> UploadedImages:
    """Read the images of a gallery; list unreadable ones instead of failing.

    Args:
        files: Path and caption of each image, as ``gr.Gallery`` passes them.
        what: Name of the expected images in the error message.

    Returns:
        The readable images, and the reason for each unreadable one.

    Raises:
        ValueError: No image is given, none can be read, or more than ``MAX_IMAGES`` are given.
    """
    paths = [path for path, _ in files or ()]
    if not paths or len(paths) > MAX_IMAGES:
        raise ValueError(f"expected {what}, at most {MAX_IMAGES}, got {len(paths) or 'none'}")
    found = UploadedImages()
    for batch in load_images(paths, on_error="skip"):
        found.failed += [{"path": Path(entry.path).name, "reason": entry.reason} for entry in batch.skipped]
        for image, name in zip(batch.images, batch.names, strict=True):
            image.filename = Path(name).name  # type: ignore[attr-defined]  # the upload's folder means nothing to the user
            found.images.append(image)
    if not found.images:
        raise ValueError("; ".join(f"{entry['path']}: {entry['reason']}" for entry in found.failed))
    return found


def encode(clip: DualEncoder, images: UploadedImages) -> Tensor:
    """Embed uploaded images (n, d), and warn of images of a kind that the CLIP does not know."""
    embeds, domain = clip.encode_image(images.images), DomainCheck(clip)
    domain.add(embeds)
    if message := domain.message():
        warn(message)
    return embeds


def whole_number(name: str, value: float | None) -> int:
    """Return what a field of the page holds as a whole number.

    Raises:
        ValueError: It is empty, not a number, or not whole.
    """
    if value is None or not float(value).is_integer():
        raise ValueError(f"expected a whole number as {name}, got {value}")
    return int(value)


@contextmanager
def as_gradio_error() -> Iterator[None]:
    """Re-raise errors of the library as ``gr.Error``, which the page shows."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(html.escape(str(error)), duration=ERROR_SECONDS, print_exception=False) from error


def warn(message: str) -> None:
    """Show a warning on the page; the event goes on."""
    gr.Warning(html.escape(message))
