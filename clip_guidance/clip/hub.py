"""Where a model is: a packaged default by its name, a folder, or a repository on the hub.

Only safetensors and json are read: a pickle can run code when it is loaded, so it is refused by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from clip_guidance.clip.image_processor import ImageProcessor

PACKAGED = Path(__file__).parents[1] / "models"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


class ModelError(ValueError):
    """A model cannot be found or must not be loaded; the message names it and says what was looked for."""


@dataclass(frozen=True)
class FoundModel:
    """A model that exists.

    Attributes:
        name: what the user asked for.
        path: its folder, or its id on the hub.
        model_type: of its ``config.json``.
    """

    name: str
    path: str
    model_type: str

    def file(self, filename: str) -> Path:
        """The local path of one of its files, downloaded where the model is on the hub."""
        return _file(self.path, filename)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer; CLIP's own class wherever the files do not ask for another.

        Raises:
            ModelError: the folder holds no vocabulary, which transformers would replace by an empty one.
        """
        folder = Path(self.path)
        if (folder / "tokenizer.json").is_file():
            return CLIPTokenizer.from_pretrained(self.path)
        if folder.is_dir() and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
            raise ModelError(f"{self.name}: no vocabulary: expected tokenizer.json, or vocab.json and merges.txt")
        return AutoTokenizer.from_pretrained(self.path)

    def image_processor(self) -> ImageProcessor:
        """Its preprocessing, under the name that transformers gives the file or gave it before version 5."""
        try:
            return ImageProcessor.from_json(self.file("preprocessor_config.json"))
        except ModelError:
            if (Path(self.path) / "processor_config.json").is_file() or not Path(self.path).is_dir():
                return ImageProcessor.from_json(self.file("processor_config.json"))
            raise


def packaged_models() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(path.name for path in PACKAGED.glob("*") if path.is_dir())


def find_model(name_or_path: str | Path, part: str, model_types: tuple[str, ...]) -> FoundModel:
    """Resolves a name to a model; a packaged name wins over a folder of the same name.

    Args:
        name_or_path: packaged name, folder or hub id.
        part: "clip", the subfolder that holds the CLIP of a packaged model.
        model_types: the ``model_type`` of config.json must be one of these.

    Raises:
        ModelError: nothing is there, it is no model, or its weights are pickled.
    """
    name = str(name_or_path)
    path = str(PACKAGED / name / part) if name in packaged_models() else name
    refuse_pickles(path)
    try:
        config = json.loads(_file(path, "config.json").read_text())
    except json.JSONDecodeError as error:
        raise ModelError(f"{name}: its config.json is no json: {error}") from error
    if config.get("model_type") not in model_types:
        expected = " or ".join(map(repr, model_types))
        raise ModelError(f"{name}: config.json has model_type {config.get('model_type')!r}, expected {expected}")
    return FoundModel(name, path, config["model_type"])


def refuse_pickles(path: str | Path) -> None:
    """Raises ModelError where ``path`` is a pickled checkpoint or a folder whose only weights are pickled."""
    path = Path(path)
    if path.suffix in PICKLES:
        raise ModelError(f"{path}: a {path.suffix} checkpoint is a pickle, which can run code; expected safetensors")
    if path.is_file():
        raise ModelError(f"{path}: expected the folder of a model, got a file")
    if path.is_dir() and not any(path.rglob("*.safetensors")):
        pickles = sorted(file.name for file in path.rglob("*") if file.suffix in PICKLES)
        if pickles:
            raise ModelError(f"{path}: its weights are pickled ({', '.join(pickles)}); expected model.safetensors")


def _file(path: str, filename: str) -> Path:
    folder = Path(path)
    if folder.is_dir():
        if not (folder / filename).is_file():
            found = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
            raise ModelError(f"{path}: no model: expected {filename}, found {found}")
        return folder / filename
    known = ", ".join(packaged_models())
    if path.count("/") != 1 or path.startswith((".", "/", "~")):  # a hub id is owner/name
        raise ModelError(f"{path}: neither a folder, nor a packaged model ({known}), nor a hub id (owner/name)")
    try:
        return Path(cached_file(path, filename))
    except OSError as error:
        raise ModelError(
            f"{path}: neither a packaged model ({known}), nor a folder, nor reachable on the hub: {error}"
        ) from error
