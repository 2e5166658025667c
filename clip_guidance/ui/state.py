"""What the tabs share: loaded models, the readable folder, uploads, and the check of a number."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from clip_guidance.clip import CLIP, DualEncoder
from clip_guidance.clip.domain import DomainCheck
from clip_guidance.clip.hub import PACKAGED, packaged_models
from clip_guidance.generation.generator import ImageGenerator
from clip_guidance.images.load import load_images

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MAX_IMAGES = 200  # per set: all are held in memory, and a report shows no more
EXAMPLES = Path(__file__).parent / "examples"  # images that the packaged model drew


@dataclass
class UploadedImages:
    """Images that the user has uploaded.

    Attributes:
        images: The readable images; ``filename`` of each is its name without the upload's folder.
        failed: ``path`` (the file name) and ``reason`` of each unreadable image.
        notes: What a CLIP has to tell of them, such as that it does not know images of their kind.
    """

    images: list[Image.Image] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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

    def resolve_path(self, path: str, what: str) -> Path:
        """Resolve a path that the user typed in the field ``what``; a relative one starts at the root.

        Raises:
            ValueError: The path is empty, or lies outside of the root, also through a link.
        """
        if not path.strip():
            raise ValueError(f"{what} is empty: type the name of a folder in {self.root}")
        found = (self.root / Path(path.strip()).expanduser()).resolve()
        if not self.may_read(found):
            raise ValueError(f"{what}: {path} {self.outside}")
        return found

    def may_read(self, path: str | Path) -> bool:
        """Return whether a file or folder lies in the root, wherever links lead."""
        return Path(path).resolve().is_relative_to(self.root)

    def examples(self, *names: str) -> list[str]:
        """Copy images that come with the page to where it may hand them out; return their paths."""
        self.downloads.mkdir(parents=True, exist_ok=True)
        return [shutil.copy(str(EXAMPLES / f"{name}.png"), str(self.downloads)) for name in names]

    @property
    def outside(self) -> str:
        """The reason why a path is not read."""
        return f"lies outside of {self.root}, the folder that this page may read (--root)"

    def _load_clip(self, name: str) -> DualEncoder:
        return CLIP.from_pretrained(name).to(self.device)


def read_images(files: Sequence[tuple[str, str | None]] | None, what: str) -> UploadedImages:
    """Read the images of a gallery; list unreadable ones instead of failing.

    Args:
        files: Path and caption of each image, as ``gr.Gallery`` passes them.
        what: Name of the gallery on the page.

    Returns:
        The readable images, and the reason for each unreadable one.

    Raises:
        ValueError: No image is given, none can be read, or more than ``MAX_IMAGES`` are given.
    """
    paths = [path for path, _ in files or ()]
    if not paths:
        raise ValueError(f"{what}: there is no image yet; drop, paste or choose at least one")
    if len(paths) > MAX_IMAGES:
        raise ValueError(f"{what}: the page takes {MAX_IMAGES} images at once, got {len(paths)}")
    found = UploadedImages()
    for batch in load_images(paths, on_error="skip"):
        found.failed += [{"path": Path(entry.path).name, "reason": entry.reason} for entry in batch.skipped]
        for image, name in zip(batch.images, batch.names, strict=True):
            image.filename = Path(name).name  # type: ignore[attr-defined]  # the upload's folder means nothing to the user
            found.images.append(image)
    if not found.images:
        raise ValueError(f"{what}: " + "; ".join(f"{entry['path']} {entry['reason']}" for entry in found.failed))
    return found


def encode(clip: DualEncoder, images: UploadedImages) -> Tensor:
    """Embed uploaded images (n, d), and note whether they are of a kind that the CLIP does not know."""
    embeds, domain = clip.encode_image(images.images), DomainCheck(clip)
    domain.add(embeds)
    if message := domain.message():
        images.notes.append(message)
    return embeds


def number(name: str, value: float | None, low: float, high: float) -> float:
    """Return the number that a field of the page holds.

    Args:
        name: Name of the field.
        value: What it holds; None where it is empty.
        low: Smallest number.
        high: Largest number.

    Raises:
        ValueError: The field is empty, or the number is out of range.
    """
    if value is None:
        raise ValueError(f"{name} is empty: type a number from {low:,} to {high:,}")
    if not low <= value <= high:  # NaN is in no range
        raise ValueError(f"{name} must be from {low:,} to {high:,}, got {value:,}")
    return float(value)


def optional_number(name: str, text: str, low: float, high: float) -> float | None:
    """Return the number that a field of text holds, which may be empty; see :func:`number`.

    gradio's own field for numbers takes an empty one for 0.

    Raises:
        ValueError: The text is no number, or the number is out of range.
    """
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, or empty for the default, got {text!r:.40}") from None
    return number(name, value, low, high)


def whole_number(name: str, value: float | None, low: int, high: int) -> int:
    """Return the whole number that a field of the page holds; see :func:`number`.

    Raises:
        ValueError: The field is empty, or what it holds is out of range or not whole.
    """
    if (found := number(name, value, low, high)) != int(found):
        raise ValueError(f"{name} must be a whole number, got {value}")
    return int(found)
