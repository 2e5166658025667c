"""How pleasing is an image? A linear head on a CLIP's image embedding: w·e + b, with e a unit vector.

The heads of LAION (https://github.com/LAION-AI/aesthetic-predictor) were fitted to the ratings of people, 1 to 10, on
embeddings of OpenAI's ViT-B/32, B/16 and L/14: one of them says nothing about another CLIP's images. Its width is
checked; that it was fitted to these very weights cannot be, since a head does not say so.

A head is a safetensors file that holds ``weight`` (1, d) and ``bias`` (1,), an ``nn.Linear``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clip_guidance.clip.hub import PICKLES, ModelError
from clip_guidance.metrics.clip_score import judge_record

if TYPE_CHECKING:
    from clip_guidance.clip import CLIP


@dataclass(frozen=True, eq=False)
class AestheticHead:
    """A linear head; a ``ImageScore`` that looks at no text.

    Args:
        name: how the score is called.
        weight: (d,).
        bias: scalar.
    """

    name: str
    weight: Tensor
    bias: Tensor
    needs_prompt = False

    @classmethod
    def from_file(cls, path: str | Path) -> AestheticHead:
        """Reads a head.

        Raises:
            ModelError: it is pickled, missing, damaged, or no linear head.
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

    def scores(self, clip: CLIP, image_embeds: Tensor, text_embeds: Tensor | None = None) -> Tensor:
        """Unit vectors (n, d) to (n,) scores.

        Raises:
            ModelError: the CLIP's embeddings have another width than the head's.
        """
        if image_embeds.shape[-1] != len(self.weight):
            raise ModelError(
                f"{self.name} was fitted to embeddings of width {len(self.weight)}, but those of "
                f"{clip.name_or_path or 'this CLIP'} have {image_embeds.shape[-1]}: take the head of this CLIP"
            )
        return image_embeds.float() @ self.weight.to(image_embeds.device) + self.bias.to(image_embeds.device)

    def mean(self, scores: Tensor) -> float:
        return scores.double().mean().item()

    def record(self, clip: CLIP) -> dict[str, Any]:
        """The head's digest is in the definition too: files of several heads may bear the same name."""
        digest = hashlib.sha256()
        for tensor in (self.weight, self.bias):
            digest.update(tensor.cpu().numpy().tobytes())
        head = digest.hexdigest()[:16]
        return {"definition": f"{self.name}@{head[:8]}", "head": head, **judge_record(clip)}


def aesthetic_score(clip: CLIP, images: Any, head: AestheticHead | str | Path, batch_size: int = 64) -> Tensor:
    """Scores images by an aesthetic head.

    Args:
        clip: the CLIP that the head was fitted to.
        images: n images, as for ``CLIP.encode_image``.
        head: a head, or the path of its safetensors.
        batch_size: images encoded at once.

    Returns:
        (n,) scores; LAION's heads mostly give 2 to 8.

    Raises:
        ModelError: the head cannot be read, or is that of another CLIP.
        ImageError: an image cannot be read.
    """
    head = head if isinstance(head, AestheticHead) else AestheticHead.from_file(head)
    return head.scores(clip, clip.encode_image(images, batch_size=batch_size))
