"""The base of every CLIP: two towers that embed images and texts in one space, whoever built the towers.

What the rest of the package uses of a CLIP is here, and nothing else: metrics, guidance, zero-shot classification and
the index take any :class:`DualEncoder`. There are two kinds: :class:`~clip_guidance.clip.CLIP`, whose towers are ours,
and :class:`~clip_guidance.clip.adapter.AdaptedCLIP` around the modules of another library.

    logit = exp(logit_scale) · cos(image, text) + logit_bias        the bias is 0 but for SigLIP and its like

A CLIP with a bias was trained by a sigmoid per pair (Zhai et al. 2023, arXiv:2303.15343): sigmoid(logit) is the
probability that image and text belong together. One without was trained by a softmax over texts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clip_guidance._tensors import at_least_float32
from clip_guidance.clip.fingerprint import digest
from clip_guidance.clip.finite import check_finite
from clip_guidance.clip.tokenizer import check_ids, check_texts, pad_rows, token_rows
from clip_guidance.images.load import ImageSource, as_list, load_image


class DualEncoder(nn.Module, ABC):
    """Embed images and texts as unit vectors in one space.

    Attributes:
        tokenizer: Turns texts into token ids; None where the model was made without one.
        image_processor: Turns images into what the image tower reads, an
            :class:`~clip_guidance.clip.image_processor.ImageProcessor` or what stands for one.
        image_encoder: Module that reads images.
        logit_scale: Log of the inverse temperature, one element.
        name_or_path: Where the model was loaded from; "" for one that was made in memory.

    Example:
        >>> import clip_guidance as cg
        >>> clip = cg.CLIP.from_pretrained("emoji")
        >>> isinstance(clip, cg.DualEncoder), clip.projection_dim, clip.logit_bias
        (True, 128, None)
    """

    tokenizer: Any
    image_processor: Any
    image_encoder: Any
    logit_scale: Tensor
    name_or_path: str

    if TYPE_CHECKING:  # torch says Tensor or Module of every attribute, which may be neither

        def __getattr__(self, name: str) -> Any: ...

    @property
    @abstractmethod
    def projection_dim(self) -> int:
        """Size d of the embeddings."""

    @property
    @abstractmethod
    def vocab_size(self) -> int | None:
        """Number of tokens that the text tower embeds; None where it does not say."""

    @property
    def logit_bias(self) -> Tensor | None:
        """What is added to every logit, one element; None for a model that was trained by a softmax."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(weight.dtype for weight in self.parameters() if weight.is_floating_point())

    @abstractmethod
    def text_embeds(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map token ids int64 (n, L) to unit vectors (n, d), differentiably.

        The vectors are normalised in at least float32, whatever the precision of the weights.
        """

    @abstractmethod
    def image_embeds(self, pixel_values: Tensor) -> Tensor:
        """Map what ``image_processor`` makes of n images to unit vectors (n, d), as :meth:`text_embeds` does."""

    @abstractmethod
    def image_states(self, pixel_values: Tensor) -> Tensor:
        """Map what ``image_processor`` makes of n images to the pooled states (n, D) before the projection.

        Where a library has no projection, or does not give the states, they are the embeddings before normalisation.
        """

    def project_states(self, states: Tensor) -> Tensor:
        """Map pooled states (n, D) of images to the common space, (n, d), not yet normalised."""
        return states

    def logits(self, cosines: Tensor) -> Tensor:
        """Turn cosines of any shape into logits, exp(logit_scale)·cos + logit_bias, in at least float32.

        Example:
            >>> import clip_guidance as cg
            >>> import torch
            >>> clip = cg.CLIP.from_pretrained("emoji")
            >>> bool(clip.logits(torch.tensor(1.0)) == clip.logit_scale.exp())
            True
        """
        logits = at_least_float32(self.logit_scale).exp() * cosines
        return logits if self.logit_bias is None else logits + at_least_float32(self.logit_bias)

    def row_embeds(self, rows: Sequence[Sequence[int]], length: int | None = None) -> Tensor:
        """Map the token ids of n texts to unit vectors (n, d).

        Args:
            rows: Ids of each text, start and end included, no more than the context holds.
            length: Number of ids that each text is padded to; by default that of the longest. A text tower that was
                trained on texts of one length gets that length in any case.

        Raises:
            ValueError: There is a token that the text tower does not know.
        """
        padded = self._padded(rows, length)
        check_ids(padded[0], self.tokenizer, self.vocab_size)
        return self.text_embeds(*(tensor.to(self.device) for tensor in padded))

    def _padded(self, rows: Sequence[Sequence[int]], length: int | None) -> list[Tensor]:
        """Return what :meth:`text_embeds` reads, on the CPU."""
        return [pad_rows(self.tokenizer, rows, length)["input_ids"]]

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str], batch_size: int = 256) -> Tensor:
        """Embed texts as unit vectors.

        Args:
            texts: One text or several, none of them empty.
            batch_size: Number of texts that are encoded at once.

        Returns:
            Float32 (n, d), on the model's device.

        Raises:
            ValueError: There is no text, one is empty or not a string, has no end token or a token that the text tower
                does not know, the CLIP has no tokenizer, or an embedding is not finite.

        Warns:
            PromptTruncatedWarning: A text is longer than the context; the message says what was cut.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        check_texts(texts)
        if self.tokenizer is None:
            given = "CLIP(config, tokenizer) or from_pretrained(name, tokenizer=...)"
            raise ValueError(f"{self.name_or_path or 'this CLIP'} was made without a tokenizer: {given}")
        parts = []
        for part in _parts(texts, batch_size):
            parts.append(self.row_embeds(token_rows(self.tokenizer, part)))
        return check_finite(self, torch.cat(parts), "text")

    @torch.no_grad()
    def encode_image(self, images: ImageSource | Iterable[ImageSource], batch_size: int = 64) -> Tensor:
        """Embed images as unit vectors.

        Args:
            images: One or several of: PIL image, path, bytes, array (H, W, 3), tensor (3, H, W) or (n, 3, H, W) with
                values in [0, 1] or uint8.
            batch_size: Number of images that are decoded and encoded at once.

        Returns:
            Float32 (n, d), on the model's device.

        Raises:
            ImageError: An image cannot be read; the message names it.
            ValueError: An embedding is not finite.
        """
        parts = []
        for part in _parts(as_list(images), batch_size):
            pixel_values = torch.stack([self.preprocess(image) for image in part])
            parts.append(self.image_embeds(pixel_values.to(self.device, self.dtype)))
        return check_finite(self, torch.cat(parts), "image")

    def preprocess(self, image: ImageSource) -> Tensor:
        """Turn one image into what the image tower reads, (3, S, S)."""
        return self.image_processor(load_image(image))

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that identify this CLIP.

        They change with any weight, the towers, the vocabulary and the preprocessing, and not with the device.
        """
        vocabulary = self.tokenizer.get_vocab() if self.tokenizer is not None else {}
        return digest([self._architecture(), self.image_processor.described(), vocabulary], self.state_dict())

    @abstractmethod
    def _architecture(self) -> Any:
        """Return what :meth:`fingerprint` reads of the towers, as JSON holds it."""


def _parts(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))
