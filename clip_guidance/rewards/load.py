"""Load the rewards of other projects by name, from a folder or from the hub, in safetensors alone.

    name          repository                     what it is
    pickscore     yuvalkirstain/PickScore_v1     a CLIP of transformers; its authors use the tokenizer of LAION's H/14
    hpsv2.1       RE-N-Y/hpsv21                  a CLIP of open_clip; the release itself is a pickle
    aesthetic     RE-N-Y/laion-aesthetic         a head on OpenAI's L/14; the release itself is a pickle
    imagereward   RE-N-Y/ImageReward             BLIP and a head; the release itself is a pickle

A folder, file or repository of another name is recognised by the names of its weights.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from clip_guidance._files import read_json
from clip_guidance._tensors import as_dtype, check_device
from clip_guidance.clip import CLIP, DualEncoder, as_clip
from clip_guidance.clip.hub import PICKLES, HubOptions, Place, find_place
from clip_guidance.clip.image_processor import CLIP_MEAN, CLIP_STD, ImageProcessor
from clip_guidance.clip.open_clip import convert_open_clip, describe_weights
from clip_guidance.clip.tokenizer import load_tokenizer
from clip_guidance.rewards.base import PromptReward, RewardError
from clip_guidance.rewards.clip_rewards import AestheticReward, PreferenceReward
from clip_guidance.rewards.heads import folded
from clip_guidance.rewards.image_reward import ImageReward

LAION_H14, OPENAI_L14 = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "openai/clip-vit-large-patch14"
BERT = "google-bert/bert-base-uncased"
REPOSITORIES = {
    "pickscore": "yuvalkirstain/PickScore_v1",
    "hpsv2.1": "RE-N-Y/hpsv21",
    "aesthetic": "RE-N-Y/laion-aesthetic",
    "imagereward": "RE-N-Y/ImageReward",
}
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "vocab.txt")
PORTS = {"xswu/HPSv2": "hpsv2.1", "THUDM/ImageReward": "imagereward", "zai-org/ImageReward": "imagereward"}


@dataclass(frozen=True)
class _Parts:
    """What a reward is built from beside its own weights."""

    prompt: str | Sequence[str] | None
    clip: DualEncoder | str | Path | None
    tokenizer: PreTrainedTokenizerBase | None
    image_processor: ImageProcessor | None
    options: HubOptions

    def check(self, kind: str, name: str) -> None:
        """Refuse a part that this kind of reward does not take, rather than to ignore it."""
        takers = {"clip": ("aesthetic",), "image_processor": ("pickscore", "hpsv2.1")}
        for part, kinds in takers.items():
            if getattr(self, part) is not None and kind not in kinds:
                raise TypeError(f"{part}: only {' and '.join(kinds)} take one, {name} is a reward like {kind}")

    def tokenizer_of(self, place: Place, default: str) -> PreTrainedTokenizerBase:
        """Return the tokenizer given, else that beside the weights, else that of the model that was trained further."""
        has_own = any(place.file(name) for name in TOKENIZER_FILES)  # else transformers looks at config.json, and fails
        found = self.tokenizer or (load_tokenizer(place) if has_own else None)
        if found is None:
            options = dataclasses.replace(self.options, revision=None, subfolder="")  # they are of the reward's own
            found = load_tokenizer(find_place(default, "tokenizer", "tokenizer.json", options))
        assert found is not None  # find_place has seen its file
        return found


def load_reward(
    name: str | Path,
    prompt: str | Sequence[str] | None = None,
    *,
    clip: DualEncoder | str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: ImageProcessor | None = None,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
) -> PromptReward:
    """Load a reward of another project, ready to steer, to choose and to judge.

    Args:
        name: "pickscore", "hpsv2.1", "aesthetic" or "imagereward"; or a folder, safetensors file or hub id with weights
            of one of these kinds; any CLIP counts as a PickScore.
        prompt: As for :class:`~clip_guidance.rewards.PromptReward`: what images are rated against when it steers.
        clip: For "aesthetic", the CLIP that the head was fitted to; by default OpenAI's ViT-L/14 of the hub.
        tokenizer: Used in place of the reward's own.
        image_processor: Used in place of the reward's own, for "pickscore" and "hpsv2.1".
        dtype: Precision of the towers' weights. Heads and what follows the towers are in float32.
        device: Where the reward is put; by default the CPU.
        revision, token, cache_dir, local_files_only, subfolder: As for ``CLIP.from_pretrained``.

    Returns:
        A module from images (B, 3, H, W) in [0, 1] to (B,), differentiable; ``score(images, prompts)`` judges.

    Raises:
        RewardError: The weights are pickled or of no known kind, some are missing or left over, or parts do not fit.
        ModelError: There is no such folder or repository.
        TypeError: An argument is of another type.
        ValueError: A prompt is empty, or there is no such dtype, device or revision.

    Example:
        >>> import tempfile, torch
        >>> import clip_guidance as cg
        >>> from pathlib import Path
        >>> from safetensors.torch import save_file
        >>> clip, path = cg.CLIP.from_pretrained("emoji"), Path(tempfile.mkdtemp(), "head.safetensors")
        >>> save_file({"weight": torch.zeros(1, clip.projection_dim), "bias": torch.ones(1)}, path)
        >>> reward = cg.load_reward(path, clip=clip)
        >>> reward.name, reward(torch.rand(2, 3, 64, 64)).tolist()
        ('aesthetic', [1.0, 1.0])
    """
    options = HubOptions(revision, token, cache_dir, local_files_only, subfolder)
    place, path, kind = _find(name, options)
    parts = _Parts(prompt, clip, tokenizer, image_processor, options)
    parts.check(kind, str(name))
    made = _BUILD[kind](place, path, parts).eval().requires_grad_(False)
    made = made.to(torch.device("cpu") if device is None else check_device(device))
    made.name_or_path, made.revision = place.name, _commit(path) if place.options else None
    return made.in_precision(as_dtype(dtype))


def _find(name: str | Path, options: HubOptions) -> tuple[Place, Path, str]:
    """Find the folder or repository of a reward, its file of weights, and its kind."""
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"expected the name of a reward, a folder or a hub id, got {name!r:.60}")
    if str(name) in PORTS:
        port = PORTS[str(name)]
        raise RewardError(f"{name}: its weights are pickled; load_reward({port!r}) loads {REPOSITORIES[port]}")
    path = Path(name)
    if path.suffix in PICKLES:
        ports = ", ".join(f"{kind!r} ({repository})" for kind, repository in REPOSITORIES.items())
        raise RewardError(f"{path}: a {path.suffix} file is a pickle, which can run code; by name there are {ports}")
    place = Place(str(path), str(path.parent))
    if not path.is_file():
        place = find_place(REPOSITORIES.get(str(name), name), "reward", "model.safetensors", options)
        found = place.file("model.safetensors")
        assert found is not None  # find_place has seen it
        path = found
    try:
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
    except (OSError, SafetensorError) as error:
        raise RewardError(f"{name}: {path.name} cannot be read as safetensors: {error}") from error
    return place, path, str(name) if str(name) in REPOSITORIES else _kind_of(keys, str(name))


def _commit(path: Path) -> str | None:
    """Return the commit of a file in a cache of the hub, ``.../snapshots/COMMIT/...``."""
    below = (path.relative_to(folder) for folder in path.parents if folder.name == "snapshots")
    return next((found.parts[0] for found in below), None)


def _kind_of(keys: set[str], name: str) -> str:
    """Tell what weights are from their names."""
    known = {key.removeprefix("module.").removeprefix("model.").removeprefix("blip.") for key in keys}
    if "visual_encoder.cls_token" in known:
        return "imagereward"
    if "visual.conv1.weight" in known:
        return "hpsv2.1"
    if "logit_scale" in known and any(key.endswith("vision_model.embeddings.class_embedding") for key in known):
        return "pickscore"
    if any(map(_is_of_head, known)):
        return "aesthetic"
    expected = "a CLIP of transformers or open_clip, BLIP with a head, or a head alone"
    raise RewardError(f"{name}: expected the weights of {expected}, got {', '.join(sorted(known)[:4])}")


def _is_of_head(key: str) -> bool:
    """Return whether a name is one of linear layers: of a single one, or numbered, alone or as "layers" or "mlp"."""
    return re.fullmatch(r"((mlp\.)?(layers\.)?\d+\.)?(weight|bias)", key) is not None


def _pickscore(place: Place, path: Path, parts: _Parts) -> PromptReward:
    processor = parts.image_processor
    if processor is None and place.file("preprocessor_config.json") is None:
        processor = ImageProcessor(_image_size(place), CLIP_MEAN, CLIP_STD)
    tokenizer = parts.tokenizer_of(place, LAION_H14)
    clip = CLIP.from_pretrained(place.path, tokenizer=tokenizer, image_processor=processor, **place.options)
    return PreferenceReward("pickscore", clip, parts.prompt)


def _image_size(place: Place) -> int:
    path = place.file("config.json")
    config: Any = read_json(path) if path is not None else {}
    vision = config.get("vision_config") or config.get("vision_config_dict") or {}
    return int(vision.get("image_size", 224))


def _hps(place: Place, path: Path, parts: _Parts) -> PromptReward:
    weights, described = load_file(path), place.file("open_clip_config.json")
    model_cfg = describe_weights(weights, place.name) if described is None else read_json(described)["model_cfg"]
    config, renamed = convert_open_clip(model_cfg, weights, place.name)
    size = config.vision_config.image_size
    processor = parts.image_processor or ImageProcessor(size, CLIP_MEAN, CLIP_STD, pad=True)
    clip = CLIP(config, parts.tokenizer_of(place, LAION_H14), processor)
    missing, left_over = clip.load_state_dict(renamed, strict=False)
    if missing or left_over:
        raise RewardError(f"{place.name}: weights missing {missing[:3]}, left over {left_over[:3]}")
    return PreferenceReward("hpsv2.1", clip, parts.prompt, scaled=False)


def _aesthetic(place: Place, path: Path, parts: _Parts) -> PromptReward:
    clip = parts.clip if parts.clip is not None else OPENAI_L14
    if isinstance(clip, str | Path):
        options = {**parts.options.as_dict(), "revision": None, "subfolder": ""}  # these are of the head's repository
        clip = CLIP.from_pretrained(clip, tokenizer=parts.tokenizer, **options)
    clip = as_clip(clip)
    head = {key: tensor for key, tensor in load_file(path).items() if _is_of_head(key)}  # a port has the CLIP beside it
    weight, bias = folded(head, None, "aesthetic")
    return AestheticReward(clip, weight, bias)


def _image_reward(place: Place, path: Path, parts: _Parts) -> PromptReward:
    return ImageReward.from_weights(load_file(path), parts.tokenizer_of(place, BERT), parts.prompt)


_BUILD = {"pickscore": _pickscore, "hpsv2.1": _hps, "aesthetic": _aesthetic, "imagereward": _image_reward}

