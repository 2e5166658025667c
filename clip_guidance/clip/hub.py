"""Find a model: a packaged one by its name, a folder, or a repository on the hub.

Only safetensors and JSON are read: a pickle can run code when it is loaded, so pickled weights are rejected by name. A
folder and a repository with the same files give the same model, or the same error.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from clip_guidance._files import read_json

PACKAGED = Path(__file__).parents[1] / "models"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
HUB_PREFIX, FOLDER_PREFIX = "hf-hub:", "local-dir:"  # open_clip's way to say what a name is
OPEN_CLIP, OPEN_CLIP_CONFIG = "open_clip", "open_clip_config.json"  # the kind of model, and the file that marks it
MESSAGE_LENGTH = 300  # most characters of an error: what other libraries report may be pages long


class ModelError(ValueError):
    """A model cannot be found or must not be loaded; the message says what was expected.

    The middle of a message of more than 300 characters is left out.

    Example:
        >>> import clip_guidance as cg
        >>> try:
        ...     cg.CLIP.from_pretrained("emoij")
        ... except cg.ModelError as error:
        ...     print(str(error).partition(",")[0])
        emoij: neither a folder
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        half = MESSAGE_LENGTH // 2 - 3
        super().__init__(line if len(line) <= MESSAGE_LENGTH else f"{line[:half]} ... {line[-half:]}")


@dataclass(frozen=True)
class HubOptions:
    """Which version of a repository is read, and how; the names are the hub's.

    Args:
        revision: Branch, tag or commit; None for the main branch.
        token: Access token, True for the one that ``hf auth login`` stored, False for none.
        cache_dir: Folder of downloads; None for the hub's own.
        local_files_only: Whether only what was downloaded before is read.
        subfolder: Folder inside the repository, or inside a folder on disk.

    Raises:
        TypeError: An option has another type.
    """

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    subfolder: str = ""

    def __post_init__(self) -> None:
        expected: dict[str, tuple[type, ...]] = {
            "revision": (str, type(None)),
            "token": (str, bool, type(None)),
            "cache_dir": (str, os.PathLike, type(None)),
            "local_files_only": (bool, type(None)),
            "subfolder": (str, type(None)),
        }
        for name, types in expected.items():
            if not isinstance(value := getattr(self, name), types):
                kinds = " or ".join(kind.__name__ for kind in types)
                raise TypeError(f"{name}: expected {kinds}, got {value!r:.60}")

    def as_dict(self) -> dict[str, Any]:
        """Return the options as keywords of the hub's functions."""
        return {**vars(self), "local_files_only": bool(self.local_files_only), "subfolder": self.subfolder or ""}


@dataclass(frozen=True)
class Place:
    """Where a model is: in a folder or on the hub.

    Attributes:
        name: What the user asked for.
        path: Its folder, or its id on the hub.
        options: Keywords for functions of the hub, transformers and diffusers; empty for a folder.
    """

    name: str
    path: str
    options: dict[str, Any] = field(default_factory=dict)

    def file(self, filename: str) -> Path | None:
        """Return the local path of a file, downloading it from the hub; None where there is no such file.

        Without a connection, a file that is not in the cache counts as absent.

        Raises:
            OSError: There is no such repository or revision, or no access to it.
            ValueError: The id of the repository is no valid one.
        """
        if not self.options:
            path = Path(self.path, filename)
            return path if path.is_file() else None
        try:
            return Path(hf_hub_download(self.path, filename, **self.options))
        except EntryNotFoundError:
            return None


@dataclass(frozen=True)
class FoundModel(Place):
    """A model that exists.

    Attributes:
        model_type: The ``model_type`` in its ``config.json``; "open_clip" for a model that open_clip describes.
    """

    model_type: str = ""


def packaged_models() -> list[str]:
    """List the names of the models that ship with the package."""
    return sorted(path.name for path in PACKAGED.glob("*") if path.is_dir())


def find_place(
    name_or_path: str | Path, kind: str, filename: str | tuple[str, ...], options: HubOptions
) -> Place:
    """Find a folder or a repository on the hub; both may be marked, as ``local-dir:folder`` or ``hf-hub:owner/name``.

    Args:
        name_or_path: Folder or hub id; not a packaged name.
        kind: What is looked for, for the message: "model" or "pipeline".
        filename: The file that marks it, or several of which it has one.
        options: Which version of a repository is read; a folder has only ``subfolder``.

    Raises:
        ModelError: The name is neither a folder with this file nor a hub id, or its weights are pickled.
        ValueError: A ``revision`` of a folder is asked for.
    """
    name = str(name_or_path)
    filenames = (filename,) if isinstance(filename, str) else filename
    path = name.removeprefix(HUB_PREFIX).removeprefix(FOLDER_PREFIX)
    is_folder = os.path.isdir(path) and path != ""
    if name.startswith(FOLDER_PREFIX) and not is_folder:
        raise ModelError(f"{name}: expected a folder")
    if name.startswith(HUB_PREFIX) and is_folder:
        raise ModelError(f"{name}: a folder of this name is here, which transformers would read in its place")
    if is_folder:
        if options.revision is not None:
            raise ValueError(f"{name:.100}: a folder has no revisions, got {options.revision!r:.60}")
        folder = Path(path, options.subfolder or "")
        reject_pickles(folder)
        if not any((folder / filename).is_file() for filename in filenames):
            found = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) if folder.is_dir() else "no folder"
            raise ModelError(f"{name}: no {kind}: expected {filenames[0]}, found {found or 'nothing'}")
        return Place(name, str(folder))
    reject_pickles(path)
    if path.count("/") != 1 or path.startswith((".", "/", "~")):  # a hub id is owner/name
        known = ", ".join(packaged_models())
        raise ModelError(f"{name}: neither a folder, nor a packaged {kind} ({known}), nor a hub id (owner/name)")
    place = Place(name, path, options.as_dict())
    absent: EntryNotFoundError | None = None
    for each in filenames:
        try:
            hf_hub_download(path, each, **place.options)
        except EntryNotFoundError as error:
            absent = absent or error
        except (OSError, ValueError) as error:
            raise ModelError(f"{name}: not reachable on the hub: {error}") from error
        else:
            return place
    expected = f"expected {filenames[0]} on the hub or in its cache: {absent}"
    raise ModelError(f"{name}: no {kind}: {expected}") from absent


def find_model(
    name_or_path: str | Path, part: str, model_types: tuple[str, ...], options: HubOptions | None = None
) -> FoundModel:
    """Find a model by its name.

    Args:
        name_or_path: Packaged name, folder or hub id; a packaged name takes precedence over a folder of that name.
        part: The subfolder of a packaged model that holds what is wanted, such as "clip".
        model_types: The values of ``model_type`` in ``config.json`` that are accepted; with "open_clip" among them, a
            model that open_clip describes is accepted too, where ``config.json`` is absent or of another type.
        options: Which version of a repository is read.

    Raises:
        ModelError: There is no model of these types, or its weights are pickled.
        TypeError: The name is neither a text nor a path.
        ValueError: A ``revision`` or ``subfolder`` of a packaged model is asked for.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(f"expected a packaged name, a folder or a hub id, got {name_or_path!r:.60}")
    options = options or HubOptions()
    name = str(name_or_path)
    if name in packaged_models():
        check_packaged(name, options)
        place = Place(name, str(PACKAGED / name / part))
    else:
        place = find_place(name, "model", ("config.json", OPEN_CLIP_CONFIG), options)
    model_type = None
    if place.file("config.json") is not None:
        model_type = read_model_json(place, "config.json").get("model_type")
    if model_type not in model_types and OPEN_CLIP in model_types and place.file(OPEN_CLIP_CONFIG) is not None:
        model_type = OPEN_CLIP
    if model_type not in model_types:
        expected = " or ".join(map(repr, model_types))
        raise ModelError(f"{name}: config.json has model_type {model_type!r:.60}, expected {expected}")
    return FoundModel(name, place.path, place.options, model_type)


def find_part(name_or_path: str | Path, filename: str, options: HubOptions) -> Place:
    """Find the model that a tokenizer or a preprocessing is taken from, whatever its weights are.

    Args:
        name_or_path: Packaged name, folder or hub id.
        filename: The file that marks it on the hub.
        options: How the hub is read.

    Raises:
        ModelError: There is none.
    """
    name = str(name_or_path)
    if name in packaged_models():
        return Place(name, str(PACKAGED / name / "clip"))
    if name and os.path.isdir(name):
        return Place(name, name)
    return find_place(name, "model", filename, options)


def read_model_json(place: Place, filename: str) -> dict[str, Any]:
    """Read one of a model's JSON files.

    Raises:
        ModelError: There is no such file, or it holds no JSON object.
    """
    if (path := place.file(filename)) is None:
        raise ModelError(f"{place.name}: has no {filename}")
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{place.name}: its {filename} {error}") from error


def check_packaged(name: str, options: HubOptions) -> None:
    """Reject options that a packaged model cannot follow.

    Raises:
        ValueError: A ``revision`` or a ``subfolder`` is given; the others are for downloads, and there are none.
    """
    if given := [option for option in ("revision", "subfolder") if getattr(options, option)]:
        raise ValueError(f"{name} is packaged and takes no {' or '.join(given)}")


def reject_options(function: str, given: Iterable[str], known: Collection[str]) -> None:
    """Reject options that a function does not know, rather than to ignore them.

    Raises:
        TypeError: There are some; the message names them and up to three known ones that are alike.
    """
    if unknown := sorted(set(given) - set(known)):
        alike = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(alike)}?" if alike else f"known are {', '.join(known)}"
        raise TypeError(f"{function}: unknown option {', '.join(unknown):.80}; {hint:.180}")


def reject_pickles(path: str | Path) -> None:
    """Reject a pickled checkpoint, and a folder whose only weights are pickled.

    Raises:
        ModelError: The path is a file, or a folder that holds pickles and no safetensors.
    """
    path = Path(path)
    if path.suffix in PICKLES:
        raise ModelError(f"{path}: a {path.suffix} checkpoint is a pickle, which can run code; expected safetensors")
    if os.path.isfile(path):
        raise ModelError(f"{path}: expected the folder of a model, got a file")
    if os.path.isdir(path) and not any(path.rglob("*.safetensors")):
        pickles = sorted(file.name for file in path.rglob("*") if file.suffix in PICKLES)
        if pickles:
            raise ModelError(f"{path}: its weights are pickled ({', '.join(pickles)}); expected model.safetensors")
