"""A generated image and its record, which its PNG holds as JSON."""

from __future__ import annotations

import itertools
import os
import re
import reprlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_guidance import __version__
from clip_guidance._display import DisplayMixin
from clip_guidance._files import write_atomically
from clip_guidance.generation.candidates import Choice
from clip_guidance.generation.settings import GenerateSettings
from clip_guidance.images.metadata import png_with_record

if TYPE_CHECKING:
    from PIL import Image


class FailedImageError(ValueError):
    """Report an image that came out empty: its numbers were not finite, or all of its pixels have one color.

    Attributes:
        reason: What was wrong with the image, such as "is of one color, (0, 0, 0)".

    Example:
        >>> from PIL import Image
        >>> check_image(Image.new("RGB", (64, 64)), GenerateSettings("a red apple", guidance_scale=99.0))
        Traceback (most recent call last):
        clip_guidance...FailedImageError: the image of 'a red apple' (seed 0) is of one color, (0, 0, 0): ...
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


def check_image(image: Image.Image, settings: GenerateSettings) -> None:
    """Refuse an image whose pixels all have one color, as they do where latents were infinite or no numbers.

    Raises:
        FailedImageError: The image has one color.
    """
    colors = image.convert("RGB").getcolors(maxcolors=1)  # None where there are more
    if colors:
        raise failed(settings, f"is of one color, {colors[0][1]}")


def failed(settings: GenerateSettings, what: str) -> FailedImageError:
    """Make the error of an image, which names what is known to cause it."""
    return FailedImageError(
        f"the image of {reprlib.repr(settings.prompt)} (seed {settings.seed}) {what}: a strength that is too large "
        f"(scale {settings.scale}, guidance_scale {settings.guidance_scale}) or a model in float16 is the usual cause",
        what,
    )


@dataclass
class GeneratedImage(DisplayMixin):
    """One image and the record that is stored in its file.

    Attributes:
        image: RGB.
        settings: All that determines the image.
        guide: Name and fingerprint of the CLIP that steered the image; None if none did.
        scores: For each CLIP and reward that scored: ``score``, ``prompt``, ``guided``, and the entries of its
            ``record``.
        device: Where the image was generated; other devices round differently.
        choice: How the image was chosen among candidates; None if it was the only one.
        batch_size: Number of images that were drawn together; others round differently.
        calibrated: The scale that the CLIP's strength came to where the settings left it open; None where they did
            not, and of particles, which have one each.
    """

    image: Image.Image
    settings: GenerateSettings
    guide: dict[str, str] | None = None
    scores: list[dict[str, Any]] = field(default_factory=list)
    device: str = "cpu"
    choice: Choice | None = None
    batch_size: int = 1
    calibrated: float | None = None

    def record(self) -> dict[str, Any]:
        """Return what is stored in the file, ready for JSON."""
        return {
            "settings": self.settings.record(),
            "guide": self.guide,
            **({} if self.calibrated is None else {"calibrated_scale": self.calibrated}),
            **({"choice": asdict(self.choice)} if self.choice else {}),
            "scores": self.scores,
            "device": self.device,
            **({"batch_size": self.batch_size} if self.batch_size > 1 else {}),
            "versions": _versions(),
        }

    def to_png(self) -> bytes:
        """Encode the image as a PNG file that carries its record."""
        return png_with_record(self.image, self.record())

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``prompt-seed.png``, or ``prompt-seed-2.png`` ... if another image has that name.

        Args:
            folder: Made if it is missing.

        Returns:
            The path of the new file, or of an existing one with the same image and record.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        data = self.to_png()
        stem = stem_of(self.settings)
        for suffix in itertools.chain([""], (f"-{number}" for number in itertools.count(2))):
            path = folder / f"{stem}{suffix}.png"
            if not path.exists():
                return self.write(path)
            if path.read_bytes() == data:
                return path
        raise AssertionError("unreachable: the suffixes are endless")

    def write(self, path: Path) -> Path:
        """Write or replace this file, whole or not at all, and return its path."""
        with write_atomically(path) as partial:
            partial.write_bytes(self.to_png())
        return path


def stem_of(settings: GenerateSettings) -> str:
    """Return the beginning of the name of an image's file, from its prompt and its seed.

    Example:
        >>> from clip_guidance.generation.image import stem_of
        >>> from clip_guidance.generation.settings import GenerateSettings
        >>> stem_of(GenerateSettings("A red apple!", seed=7))
        'a-red-apple-7'
    """
    slug = re.sub(r"\W+", "-", settings.prompt.lower()).strip("-")[:40].rstrip("-") or "image"
    return f"{slug}-{settings.seed}"


def _versions() -> dict[str, str]:
    """Return the versions that an image depends on."""
    import diffusers  # slow to import, and loaded already where an image was generated
    import torch

    return {"clip_guidance": __version__, "torch": str(torch.__version__), "diffusers": diffusers.__version__}
