"""Weights of a repository whose main branch holds pickles alone: a bot of the hub converts them in a pull request.

``transformers`` asks that bot itself (``safetensors_conversion.py``), unless it is offline or a version of the
repository is asked for. Here nothing is asked to be converted: what is in the cache or in a pull request is used, and a
warning tells which one.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from transformers import AutoConfig

from clip_guidance.clip.hub import ModelError, Place

BOT = "SFconvertbot"  # the author of the conversions
SAFE = ("model.safetensors", "model.safetensors.index.json")
_PICKLED = "pytorch_model.bin"


def weight_options(place: Place) -> dict[str, Any]:
    """Return the keywords with which ``from_pretrained`` of ``transformers`` reads a model's safetensors.

    Args:
        place: Where the model is.

    Returns:
        Those of the place. Where its main branch has no safetensors, the revision is that of the pull request that has
        them, and the config is the main branch's.

    Raises:
        ModelError: A repository has no safetensors, and there is no such pull request.

    Warns:
        UserWarning: The weights of a pull request are used; the message says how to pin it.
    """
    if not place.options or any(map(place.file, SAFE)):
        return place.options
    revision = None
    if place.options["revision"] is None and not place.options["subfolder"]:
        revision = _cached_conversion(place) or _conversion(place)
    if revision is None:
        advice = "huggingface.co/spaces/safetensors/convert makes a pull request N: revision='refs/pr/N' loads it"
        found = "no model.safetensors, at hand or converted"
        raise ModelError(f"{place.name}: {found}; where its weights are pickled, {advice}")
    warnings.warn(
        f"{place.name}: its weights are pickled; used are those that were converted in {revision}, as with "
        f"revision={revision!r}",
        stacklevel=3,
    )
    return {**place.options, "revision": revision, "config": AutoConfig.from_pretrained(place.path, **place.options)}


def _cached_conversion(place: Place) -> str | None:
    """Return the newest pull request whose safetensors are in the cache."""
    cache = Path(place.options["cache_dir"] or constants.HF_HUB_CACHE)
    repository = cache / repo_folder_name(repo_id=place.path, repo_type="model")
    requests = [path for path in repository.glob("refs/refs/pr/*") if path.name.isdecimal()]
    for request in sorted(requests, key=lambda path: int(path.name), reverse=True):
        snapshot = repository / "snapshots" / request.read_text(encoding="utf-8").strip()
        if any((snapshot / name).is_file() for name in SAFE):
            return f"refs/pr/{request.name}"
    return None


def _conversion(place: Place) -> str | None:
    """Return the bot's open pull request on the hub that converts the pickles of the main branch as they are now."""
    if place.options["local_files_only"]:
        return None
    api = HfApi(token=place.options["token"])
    try:
        open_requests = api.get_repo_discussions(
            place.path, author=BOT, discussion_type="pull_request", discussion_status="open"
        )
        main = _pickle(api, place.path, "main")
        revisions = (f"refs/pr/{request.num}" for request in open_requests)
        return next((revision for revision in revisions if main and _pickle(api, place.path, revision) == main), None)
    except Exception:  # of any kind, from the network or the hub: the weights are not at hand
        return None


def _pickle(api: HfApi, repository: str, revision: str) -> str | None:
    """Return the id of the content of the pickled weights, None where there are none."""
    found = api.get_paths_info(repository, [_PICKLED], revision=revision)
    return next((file.blob_id for file in found if isinstance(file, RepoFile)), None)
