"""Tokenizers and preprocessing that are plain functions, as open_clip has them, with the face of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

from clip_guidance.clip.compose import read_compose
from clip_guidance.clip.image_processor import ImageProcessor
from clip_guidance.clip.naflex import NaFlexProcessor, read_naflex


class FunctionTokenizer:
    """Make token ids by a function from texts to ids (n, L), all texts of one length.

    The function cuts and pads texts itself. What it cuts is known, and warned of, where it has ``encode`` and the ids
    of its start and end, as the tokenizer of open_clip's own text towers has; of another, no text counts as cut.

    Args:
        function: The function, such as ``open_clip.get_tokenizer`` returns.

    Attributes:
        model_max_length: L, the context.
        tells_length: Whether the length of a text is known before it is cut.

    Raises:
        TypeError: The function returns something else.
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        ids = function(["a"])
        if not isinstance(ids, Tensor) or ids.ndim != 2 or len(ids) != 1 or ids.is_floating_point():
            found = f"shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(f"tokenizer: expected a function from a list of texts to token ids (n, L), got {found}")
        self.model_max_length = ids.shape[1]
        self.tells_length = all(hasattr(function, part) for part in ("encode", "sot_token_id", "eot_token_id"))
        self.all_special_ids = [function.sot_token_id, function.eot_token_id] if self.tells_length else []

    def __call__(self, texts: Sequence[str], truncation: bool = False, **_: Any) -> BatchEncoding:
        if truncation or not self.tells_length:
            return BatchEncoding({"input_ids": self.function(list(texts)).tolist()})
        start, end = self.all_special_ids
        return BatchEncoding({"input_ids": [[start, *self.function.encode(text), end] for text in texts]})

    def pad(self, encoded: dict[str, Any], **_: Any) -> BatchEncoding:
        """Pad rows to the context with zeros, as open_clip does."""
        rows = [[*row, *[0] * (self.model_max_length - len(row))] for row in encoded["input_ids"]]
        return BatchEncoding({"input_ids": torch.tensor(rows)})

    def decode(self, ids: Sequence[int]) -> str:
        return self.function.decode(list(ids))

    def get_vocab(self) -> dict[str, int]:
        return dict(getattr(self.function, "encoder", {}))

    def convert_ids_to_tokens(self, number: int) -> str:
        return str(number)

    def __len__(self) -> int:
        return len(self.get_vocab())


class FunctionProcessor:
    """Make pixel values by a function from a PIL image to (3, S, S), for judging; nothing is steered through it.

    Args:
        function: The function, such as a ``Compose`` of torchvision.
    """

    def __init__(self, function: Callable[[Image.Image], Tensor]) -> None:
        self.function = function
        pixels = function(Image.new("RGB", (64, 64)))
        if not isinstance(pixels, Tensor) or pixels.ndim != 3 or len(pixels) != 3:
            found = f"shape {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else type(pixels).__name__
            raise TypeError(f"preprocess: expected a function from a PIL image to a tensor (3, S, S), got {found}")
        self.image_size = pixels.shape[-1]
        self.sides = tuple(pixels.shape[-2:])

    def __call__(self, image: Image.Image) -> Tensor:
        return self.function(image.convert("RGB"))

    def differentiable(self, images: Tensor) -> Tensor:
        """Refuse to preprocess tensors.

        Raises:
            TypeError: Always; the message says what to give instead.
        """
        raise TypeError(
            f"preprocess is a function of PIL images, {type(self.function).__name__}, through which no gradient flows, "
            "so that it judges and cannot steer: give CLIP.wrap an ImageProcessor(image_size, image_mean, image_std)"
        )

    def described(self) -> str:
        return repr(self.function)

    def record(self) -> str:
        return repr(self.function)


def as_tokenizer(tokenizer: Any) -> Any:
    """Return a tokenizer of transformers as it is, and a function as one.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase | FunctionTokenizer):
        return tokenizer
    if not callable(tokenizer) or isinstance(tokenizer, type):
        raise TypeError(f"tokenizer: expected a tokenizer or a function of texts, got {type(tokenizer).__name__}")
    return FunctionTokenizer(tokenizer)


def as_image_processor(preprocess: Any) -> Any:
    """Return preprocessing whose steps can be read as an ``ImageProcessor``, and another function as what judges.

    Raises:
        TypeError: It is no function.
        ValueError: An image processor of ``transformers`` does what an ``ImageProcessor`` does not.
    """
    if isinstance(preprocess, ImageProcessor | NaFlexProcessor | FunctionProcessor):
        return preprocess
    if isinstance(preprocess, BaseImageProcessor):
        return read_naflex(preprocess.to_dict()) or ImageProcessor.from_dict(preprocess.to_dict())
    if (read := read_compose(preprocess)) is not None:
        return read
    if not callable(preprocess) or isinstance(preprocess, type):
        raise TypeError(f"preprocess: expected an ImageProcessor or a function, got {type(preprocess).__name__}")
    return FunctionProcessor(preprocess)
