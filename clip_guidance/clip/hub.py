"""Find a model: a packaged one by its name, a folder, or a repository on the hub.

Only safetensors and JSON are read: a pickle can run code when it is loaded, so pickled weights are rejected by name.
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
    """A model cannot be found or must not be loaded; the message says what was expected.

    Example:
        >>> import clip_guidance as cg
        >>> try:
        ...     cg.CLIP.from_pretrained("emoij")
        ... except cg.ModelError as error:
        ...     print(str(error).partition(",")[0])
        emoij: neither a folder
    """


@dataclass(frozen=True)
class FoundModel:
    """A model that exists, in a folder or on the hub.

    Attributes:
        name: What the user asked for.
        path: Its folder, or its id on the hub.
        model_type: The ``model_type`` in its ``config.json``.
    """

    name: str
    path: str
    model_type: str

    def file(self, filename: str) -> Path:
        """Return the local path of one of the model's files, downloading it from the hub."""
        return _file(self.path, filename)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the model's tokenizer, as CLIP's own class wherever the files do not ask for another.

        Raises:
            ModelError: The folder holds no vocabulary; ``transformers`` would silently make an empty one.
        """
        folder = Path(self.path)
        if (folder / "tokenizer.json").is_file():
            return CLIPTokenizer.from_pretrained(self.path)
        if folder.is_dir() and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
            raise ModelError(f"{self.name}: no vocabulary: expected tokenizer.json, or vocab.json and merges.txt")
        return AutoTokenizer.from_pretrained(self.path)

    def image_processor(self) -> ImageProcessor:
        """Load the model's preprocessing, from the file that any version of transformers writes."""
        try:
            return ImageProcessor.from_json(self.file("preprocessor_config.json"))
        except ModelError:
            if (Path(self.path) / "processor_config.json").is_file() or not Path(self.path).is_dir():
                return ImageProcessor.from_json(self.file("processor_config.json"))
            raise


def packaged_models() -> list[str]:
    """List the names of the models that ship with the package."""
    return sorted(path.name for path in PACKAGED.glob("*") if path.is_dir())


def find_model(name_or_path: str | Path, part: str, model_types: tuple[str, ...]) -> FoundModel:
    """Find a model by its name.

    Args:
        name_or_path: Packaged name, folder or hub id; a packaged name takes precedence over a folder of that name.
        part: The subfolder of a packaged model that holds what is wanted, such as "clip".
        model_types: The values of ``model_type`` in ``config.json`` that are accepted.

    Raises:
        ModelError: There is no model of these types, or its weights are pickled.
    """
    name = str(name_or_path)
    path = str(PACKAGED / name / part) if name in packaged_models() else name
    reject_pickles(path)
    try:
        config = json.loads(_file(path, "config.json").read_text())
    except json.JSONDecodeError as error:
        raise ModelError(f"{name}: its config.json is not valid JSON: {error}") from error
    if config.get("model_type") not in model_types:
        expected = " or ".join(map(repr, model_types))
        raise ModelError(f"{name}: config.json has model_type {config.get('model_type')!r}, expected {expected}")
    return FoundModel(name, path, config["model_type"])


def reject_pickles(path: str | Path) -> None:
    """Reject a pickled checkpoint, and a folder whose only weights are pickled.

    Raises:
        ModelError: The path is a file, or a folder that holds pickles and no safetensors.
    """
    path = Path(path)
    if path.suffix in PICKLES:
        raise ModelError(f"{path}: a {path.suffix} checkpoint is a pickle, which can run code; expected safetensors")
    if path.is_file():
        raise ModelError(f"{path}: expected the folder of a model, got a file")
    if path.is_dir() and not any(path.rglob("*.safetensors")):
        pickles = sorted(file.name for file in path.rglob("*") if file.suffix in PICKLES)
        if pickles:
            raise ModelError(f"{path}: its weights are pickled ({', '.join(pickles)}); expected model.safetensors")


def check_place(name: str, kind: str, filename: str) -> None:
    """Check that a name is a folder with the file that marks a model, or can be a hub id.

    Args:
        name: What the user asked for; not a packaged name.
        kind: What it should be, for the message: "model" or "pipeline".
        filename: The file that a folder of this kind holds.

    Raises:
        ModelError: The name is neither.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / filename).is_file():
            found = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
            raise ModelError(f"{name}: no {kind}: expected {filename}, found {found}")
    elif name.count("/") != 1 or name.startswith((".", "/", "~")):  # a hub id is owner/name
        known = ", ".join(packaged_models())
        raise ModelError(f"{name}: neither a folder, nor a packaged {kind} ({known}), nor a hub id (owner/name)")


def _file(path: str, filename: str) -> Path:
    check_place(path, "model", filename)
    if Path(path).is_dir():
        return Path(path, filename)
    try:
        return Path(cached_file(path, filename))
    except OSError as error:
        known = ", ".join(packaged_models())
        raise ModelError(
            f"{path}: neither a packaged model ({known}), nor a folder, nor reachable on the hub: {error}"
        ) from error
