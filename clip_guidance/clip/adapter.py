"""The CLIPs of other libraries, around the library's own modules: nothing of them is copied or renamed.

TransformersAdapter    ``get_text_features`` and ``get_image_features``: SigLIP, MetaCLIP 2, AltCLIP ...
ModuleAdapter          ``encode_text`` and ``encode_image``: open_clip, and whatever has these two
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from clip_guidance._tensors import unit_vectors
from clip_guidance.clip.dual_encoder import DualEncoder
from clip_guidance.clip.fingerprint import architecture
from clip_guidance.clip.hub import ModelError
from clip_guidance.clip.naflex import NaFlexProcessor
from clip_guidance.clip.tokenizer import lower_cased, pad_rows, token_rows

#: Families of transformers that are loaded by name, beside its ``clip``, whose weights become our towers.
FAMILIES = (
    *("aimv2", "align", "altclip", "chinese_clip", "groupvit", "metaclip_2", "owlvit", "siglip", "siglip2"),
    *("tipsv2", "vision-text-dual-encoder"),
)
# Their texts were lower-cased and padded to one length in training, and their text towers read the padding.
_PADDED = ("siglip", "siglip2")


class AdaptedCLIP(DualEncoder):
    """Embed images and texts by the towers of another library.

    Args:
        model: What holds the towers.
        tokenizer: What makes its token ids, as of transformers.
        image_processor: Makes what its image tower reads.
        name: Name of the model.
    """

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, name: str = "") -> None:
        super().__init__()
        self.model, self.tokenizer, self.image_processor = model, tokenizer, image_processor
        self.name_or_path = name

    @abstractmethod
    def _text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Map token ids (n, L) to the text tower's vectors (n, d), of any length."""

    @property
    def logit_scale(self) -> Tensor:  # type: ignore[override]
        """Log of the inverse temperature, one element."""
        return torch.as_tensor(self.model.logit_scale)

    @property
    def logit_bias(self) -> Tensor | None:
        """What is added to every logit, one element; None for a model that was trained by a softmax."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else torch.as_tensor(bias)

    @cached_property
    def projection_dim(self) -> int:
        """Size d of the embeddings, as a text's embedding has it: no setting says it in every library."""
        with torch.no_grad():
            return self.row_embeds(token_rows(self.tokenizer, ["a"])).shape[-1]

    def text_embeds(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return unit_vectors(self._text_features(input_ids, attention_mask))

    def image_embeds(self, pixel_values: Tensor) -> Tensor:
        return unit_vectors(self.image_states(pixel_values))


class TransformersAdapter(AdaptedCLIP):
    """Embed by a dual encoder of transformers; see :class:`AdaptedCLIP`.

    Args:
        model: A model with ``get_text_features`` and ``get_image_features``.
        tokenizer: Its tokenizer; its ``model_max_length`` is lowered to the text tower's context, and it is made to
            lower the texts of SigLIP; None where no text is encoded.
        image_processor: Makes what its image tower reads.
        name: Name of the model.

    Raises:
        ModelError: The model has no logits, or its image tower reads images of another size.
    """

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, name: str = "") -> None:
        super().__init__(model, tokenizer, image_processor, name)
        kind, called = model.config.model_type, name or "this model"
        if not hasattr(model, "logit_scale") and not hasattr(model, "temperature"):
            raise ModelError(f"{called}: a {kind} has no logit_scale, so that no likelihood follows from a cosine")
        self._is_padded = kind in _PADDED
        side = "patch_size" if kind == "siglip2" else "image_size"
        if (size := _image_size(model, side)) is not None:
            check_image_size(called, image_processor, size, side)
        if tokenizer is not None and (context := _context(model)) is not None:
            tokenizer.model_max_length = min(tokenizer.model_max_length, context)
        if tokenizer is not None and self._is_padded:
            lower_cased(tokenizer)

    @property
    def image_encoder(self) -> nn.Module:
        """Module that reads images."""
        return self.model.vision_model

    @property
    def vocab_size(self) -> int | None:
        """Number of tokens that the text tower embeds; None where its config does not say."""
        return getattr(self.model.config.text_config, "vocab_size", None)

    @property
    def logit_scale(self) -> Tensor:  # type: ignore[override]
        """Log of the inverse temperature, one element."""
        if hasattr(self.model, "temperature"):  # ALIGN divides by it
            return -self.model.temperature.log()
        scale = self.model.logit_scale
        return scale.clamp(0, self.model.max_log_logit_scale) if hasattr(self.model, "max_log_logit_scale") else scale

    def _padded(self, rows: Sequence[Sequence[int]], length: int | None) -> list[Tensor]:
        length = self.tokenizer.model_max_length if self._is_padded else length
        padded = pad_rows(self.tokenizer, rows, length, self.tokenizer.padding_side)
        return [padded[name] for name in ("input_ids", "attention_mask") if name in padded]

    def image_states(self, pixel_values: Tensor) -> Tensor:
        patches = isinstance(self.image_processor, NaFlexProcessor)
        read = self.image_processor.unpacked(pixel_values) if patches else {"pixel_values": pixel_values}
        return _pooled(self.model.get_image_features(**read))

    def _text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        return _pooled(self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask))

    def _architecture(self) -> Any:
        return architecture(self.model.config.to_dict())


class ModuleAdapter(AdaptedCLIP):
    """Embed by an object with ``encode_text``, ``encode_image`` and ``logit_scale``; see :class:`AdaptedCLIP`.

    Args:
        model: The object; ``logit_bias`` counts where it has one.
        tokenizer: Its tokenizer.
        image_processor: Makes what its image tower reads.
        name: Name of the model.

    Raises:
        TypeError: The object lacks one of the three.
    """

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, name: str = "") -> None:
        super().__init__(model, tokenizer, image_processor, name)
        if missing := [part for part in ("encode_text", "encode_image", "logit_scale") if not hasattr(model, part)]:
            raise TypeError(f"expected a model with {', '.join(missing)}, got {type(model).__name__}")

    @property
    def image_encoder(self) -> Any:
        """Module that reads images; where the object does not name it, the object."""
        return getattr(self.model, "visual", self.model)

    @property
    def vocab_size(self) -> int | None:
        """Number of tokens that the text tower embeds; None where it does not say."""
        return getattr(self.model, "vocab_size", None)

    def image_states(self, pixel_values: Tensor) -> Tensor:
        return self.model.encode_image(pixel_values)

    def _text_features(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.model.encode_text(input_ids)

    def _architecture(self) -> Any:
        return type(self.model).__qualname__


def check_image_size(name: str, image_processor: Any, read: int, side: str = "image_size") -> None:
    """Check that preprocessing makes images, or patches, of the size that an image tower reads.

    Raises:
        ModelError: It does not.
    """
    if (made := getattr(image_processor, side, None)) != read:
        what = {"image_size": "images", "patch_size": "patches"}[side]
        makes = made if made else f"no {what} of one size"
        raise ModelError(f"{name}: its image tower reads {what} of {read} pixels, its preprocessing makes {makes}")


def is_dual_encoder(model: Any) -> bool:
    """Return whether an object is a dual encoder of transformers, with its towers where the adapter expects them."""
    parts = ("get_text_features", "get_image_features", "text_model", "vision_model")
    return isinstance(model, nn.Module) and all(hasattr(model, part) for part in parts)


def _pooled(output: Any) -> Tensor:
    """Return the vectors (n, d) in what ``get_text_features`` and its like return."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _position_tables(tower: nn.Module) -> list[Any]:
    """Return the learned positions of a tower: embeddings, or parameters."""
    modules = [m for name, m in tower.named_modules() if isinstance(m, nn.Embedding) and "position" in name]
    return modules or [weight for name, weight in tower.named_parameters() if "position" in name]


def _context(model: Any) -> int | None:
    """Return how many tokens a text tower reads; None where its positions are not learned."""
    found = [table for table in _position_tables(model.text_model) if isinstance(table, nn.Embedding)]
    if not found:
        return getattr(model.config.text_config, "max_position_embeddings", None)
    # RoBERTa counts from the padding's id + 1, and keeps the places up to it for padding.
    before = 0 if found[0].padding_idx is None else found[0].padding_idx + 1
    return found[0].num_embeddings - before


def _image_size(model: Any, side: str) -> int | None:
    """Return the side of the images or patches that an image tower reads; None where it reads any."""
    size = getattr(model.config.vision_config, side, None)  # without positions, any will do
    return size if isinstance(size, int) and _position_tables(model.vision_model) else None
