"""Aesthetic score: a linear head on a CLIP's image embedding, w·e + b, with e a unit vector.

The heads of LAION (https://github.com/LAION-AI/aesthetic-predictor) were fitted to the ratings of people, 1 to 10, on
embeddings of OpenAI's ViT-B/32, B/16 and L/14. A head says nothing about the embeddings of another CLIP. Its width is
checked; whether it was fitted to the very weights at hand cannot be checked, because the file does not say so.

A head is a safetensors file that holds ``weight`` (1, d) and ``bias`` (1,), an ``nn.Linear``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clip_guidance.clip import DualEncoder, as_clip
from clip_guidance.clip.hub import PICKLES, ModelError
from clip_guidance.metrics.clip_score import judge_record


@dataclass(frozen=True, eq=False)
class AestheticHead:
    """Score image embeddings by a linear head; an ``ImageScore`` that reads no text.

    Args:
        name: Name of the score, "aesthetic:" and the name of the file.
        weight: Weight vector (d,).
        bias: Scalar.
    """

    name: str
    weight: Tensor
    bias: Tensor
    needs_prompt = False

    @classmethod
    def from_file(cls, path: str | Path) -> AestheticHead:
        """Read a head from a safetensors file.

        Raises:
            ModelError: The file is pickled, missing or damaged, or holds no linear head.
        """
        path = Path(path)
        if path.suffix in PICKLES:
            raise ModelError(f"{path}: a {path.suffix} file is a pickle, which can run code; expected safetensors")
        try:
            tensors = load_file(path)
        except FileNotFoundError:
            raise ModelError(f"{path}: no such file") from None
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: cannot be read as safetensors: {error}") from error
        shapes = {key: tuple(tensor.shape) for key, tensor in sorted(tensors.items())}
        width = shapes.get("weight", ())[-1:]
        if shapes != {"weight": (1, *width), "bias": (1,)} or not width:
            raise ModelError(f"{path}: expected a head of weight (1, d) and bias (1,), got {shapes}")
        return cls(f"aesthetic:{path.stem}", tensors["weight"][0].float(), tensors["bias"][0].float())

    def texts(self, prompt: str = "") -> list[str]:
        return []

    def scores(self, clip: DualEncoder, image_embeds: Tensor, text_embeds: Tensor | None = None) -> Tensor:
        """Score images from their unit vectors (n, d); returns (n,).

        Raises:
            ModelError: The width of the CLIP's embeddings is not that of the head.
        """
        if image_embeds.shape[-1] != len(self.weight):
            raise ModelError(
                f"{self.name} was fitted to embeddings of width {len(self.weight)}, but those of "
                f"{clip.name_or_path or 'this CLIP'} have {image_embeds.shape[-1]}: take the head of this CLIP"
            )
        return image_embeds.float() @ self.weight.to(image_embeds.device) + self.bias.to(image_embeds.device)

    def mean(self, scores: Tensor) -> float:
        return scores.double().mean().item()

    def record(self, clip: DualEncoder) -> dict[str, Any]:
        """Return what is needed to compute the same score again, with a digest of the head.

        The digest is part of the definition too, because files of several heads may bear the same name.
        """
        digest = hashlib.sha256()
        for tensor in (self.weight, self.bias):
            digest.update(tensor.cpu().numpy().tobytes())
        head = digest.hexdigest()[:16]
        return {"definition": f"{self.name}@{head[:8]}", "head": head, **judge_record(clip)}


def aesthetic_score(clip: DualEncoder, images: Any, head: AestheticHead | str | Path, batch_size: int = 64) -> Tensor:
    """Score images by an aesthetic head.

    Args:
        clip: The CLIP that the head was fitted to.
        images: Images, n of them, as for ``CLIP.encode_image``.
        head: A head, or the path of its safetensors file.
        batch_size: Images encoded at once; it changes speed and memory, not the scores.

    Returns:
        Scores (n,), float32; LAION's heads mostly give 2 to 8.

    Raises:
        ModelError: The head cannot be read, or was fitted to a CLIP of another width.
        ImageError: An image cannot be read.

    Example:
        >>> import clip_guidance as cg
        >>> import torch
        >>> from PIL import Image
        >>> from clip_guidance.metrics.aesthetic import AestheticHead
        >>> clip = cg.CLIP.from_pretrained("emoji")
        >>> head = AestheticHead("aesthetic:constant", torch.zeros(clip.projection_dim), torch.tensor(5.0))
        >>> cg.aesthetic_score(clip, [Image.new("RGB", (64, 64), "red")], head)
        tensor([5.])
    """
    head = head if isinstance(head, AestheticHead) else AestheticHead.from_file(head)
    clip = as_clip(clip)
    return head.scores(clip, clip.encode_image(images, batch_size=batch_size))
