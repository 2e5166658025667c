"""The embeddings of all training images, computed once, for a locked image tower.

With the image tower locked (LiT, Zhai et al. 2022, arXiv:2111.07991) and no augmentation, an image's embedding never
changes: a step of training encodes its texts and looks up its images.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clip_guidance._files import write_atomically
from clip_guidance.clip import CLIP

KEY = "image_embeds"


def cached_image_embeds(clip: CLIP, images: Tensor, path: Path, batch_size: int = 256) -> Tensor:
    """Read the embeddings of images from a file, or compute and write them.

    A file of another CLIP or of other images, or a damaged one, is computed anew and replaced.

    Args:
        clip: On any device; used in evaluation mode and left in the mode it was in.
        images: uint8 (N, 3, H, W).
        path: Of a safetensors file, whose metadata name the CLIP and the images.
        batch_size: Images per pass.

    Returns:
        Unit vectors (N, d) on the CPU, in float32, or float64 where the CLIP is.
    """
    made_of = _made_of(clip, images)
    if (known := _read(path, made_of)) is not None:
        return known
    training = clip.training
    clip.eval()
    with torch.no_grad():
        parts = [_embed(clip, part) for part in images.split(batch_size)]
    clip.train(training)
    embeds = torch.cat(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as partial:
        save_file({KEY: embeds}, partial, {"made_of": made_of})
    return embeds


def _embed(clip: CLIP, images: Tensor) -> Tensor:
    pixels = images.to(clip.device).to(clip.dtype) / 255
    return clip.image_embeds(clip.image_processor.differentiable(pixels)).cpu()


def _made_of(clip: CLIP, images: Tensor) -> str:
    """Describe the CLIP and the images: fingerprint, number and digest."""
    digest = hashlib.blake2b(images.contiguous().numpy().data, digest_size=8).hexdigest()
    return f"clip {clip.fingerprint()}, {len(images)} images {digest}"


def _read(path: Path, made_of: str) -> Tensor | None:
    """Read the embeddings; None where the file is missing, damaged or of something else."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(KEY) if (file.metadata() or {}).get("made_of") == made_of else None
    except (OSError, SafetensorError):
        return None
