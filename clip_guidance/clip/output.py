"""What a CLIP's forward pass returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class CLIPOutput(ModelOutput):
    """What :meth:`CLIP.forward` returns.

    Attributes:
        loss: Scalar, only with ``return_loss``.
        logits_per_image: (N, M), exp(logit_scale) · cos, only without ``return_loss``.
        image_embeds: (N, d) unit vectors.
        text_embeds: (M, d) unit vectors.
        text_model_output: Output of the text tower, only where attentions or hidden states are asked for.
        vision_model_output: Output of the image tower, likewise.

    Example:
        >>> import torch
        >>> import clip_guidance as cg
        >>> clip = cg.CLIP.from_pretrained("emoji")
        >>> input_ids = clip.tokenizer(["a red apple"], return_tensors="pt").input_ids
        >>> with torch.no_grad():
        ...     output = clip(input_ids, torch.zeros(2, 3, 64, 64))
        >>> output.logits_per_image.shape, output.loss
        (torch.Size([2, 1]), None)
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    text_model_output: ModelOutput | None = None
    vision_model_output: ModelOutput | None = None
