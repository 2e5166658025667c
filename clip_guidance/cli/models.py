"""``clip-guidance models``: list the packaged models."""

from __future__ import annotations

import json as json_library
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from clip_guidance.cli import _common as common
from clip_guidance.cli import _options as options

DOMAIN = "domain"  # statistics, see clip/domain.py, not a network
FOLDER = Path(__file__).parent.parent / "models"  # clip/hub.py defines it too, but is slow to import


@dataclass(frozen=True)
class PackagedModel:
    """A row of the list.

    Attributes:
        name: Name to load the model by.
        kind: "CLIP", or "CLIP and pipeline".
        parameters: Number of parameters of all its networks.
        bytes: Size of its files.
        description: First line of its model card.
    """

    name: str
    kind: str
    parameters: int
    bytes: int
    description: str


def command(json: options.Json = False) -> None:
    """List the packaged models, which work offline."""
    models = [describe(folder) for folder in sorted(FOLDER.glob("*")) if (folder / "clip").is_dir()]
    if json:
        common.print_json([asdict(model) for model in models])
        return
    common.print_table(
        ["name", "kind", "parameters", "size", "description"],
        [(m.name, m.kind, f"{m.parameters:,}", f"{m.bytes / 1e6:.1f} MB", m.description) for m in models],
    )


def describe(folder: Path) -> PackagedModel:
    """Describe a packaged model: ``clip/`` holds the CLIP, ``unet/`` and others the pipeline."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix == ".safetensors" and path.stem != DOMAIN]
    return PackagedModel(
        name=folder.name,
        kind="CLIP and pipeline" if (folder / "unet").is_dir() else "CLIP",
        parameters=sum(map(count_parameters, weights)),
        bytes=sum(path.stat().st_size for path in files),
        description=_first_line(folder / "README.md"),
    )


def count_parameters(path: Path) -> int:
    """Count the numbers in a safetensors file: its header is 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        header = json_library.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _first_line(card: Path) -> str:
    """Return the first line of a model card that is neither front matter nor a heading."""
    if not card.is_file():
        return ""
    text = card.read_text(encoding="utf-8")
    if text.startswith("---"):
        text = text.split("\n---", 1)[-1].partition("\n")[2]
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line and not line.startswith(("#", "<", "!["))), "")
