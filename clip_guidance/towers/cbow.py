"""Continuous bag of words: a text is the mean of its tokens' embeddings (Mikolov et al. 2013, arXiv:1301.3781).

The mean passes a residual two-layer perceptron before the projection, which lets words interact ("red" + "apple").
The token embeddings are the sequence that a pipeline cross-attends to; they depend on neither order nor neighbours.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

# diffusers loads a class from a module only if the name of the class's base is in that module too.
from transformers import PreTrainedModel as PreTrainedModel
from transformers.activations import ACT2FN

from clip_guidance.towers.checks import check_activation, check_counts
from clip_guidance.towers.layers import linear
from clip_guidance.towers.text import TextConfig, TextEmbeddings, TextStates, TextTower, token_mask


class CBOWTextConfig(TextConfig):
    """Configure a :class:`CBOWTextModel`.

    The other settings are those of :class:`~clip_guidance.towers.text.TextConfig`.

    Args:
        intermediate_size: Hidden width of the perceptron that follows the mean.
        hidden_act: Activation of the perceptron, by the name that transformers gives it.

    Raises:
        ValueError: A size is no whole number of at least 1, or the activation is unknown.

    Example:
        >>> import clip_guidance as cg
        >>> cg.towers.CBOWTextConfig(vocab_size=1000, hidden_size=64).intermediate_size
        1024
    """

    model_type = "clip_guidance_text_cbow"

    intermediate_size: int = 1024
    hidden_act: str = "gelu"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_counts(self, "intermediate_size")
        check_activation(self)


class BagOfWords(nn.Module):
    """Compute embeddings, final norm, masked mean and perceptron."""

    def __init__(self, config: CBOWTextConfig):
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config, positions=0)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = nn.Sequential(
            linear(config.hidden_size, config.intermediate_size),
            ACT2FN[config.hidden_act],
            linear(config.intermediate_size, config.hidden_size),
        )

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, attentions: list[Tensor] | None = None
    ) -> TextStates:
        x = self.embeddings(input_ids)
        last_hidden_state = self.final_layer_norm(x)
        weight = token_mask(input_ids, attention_mask, self.config.pad_token_id)[..., None].to(x.dtype)
        mean = (last_hidden_state * weight).sum(1) / weight.sum(1).clamp(min=1)
        # Three equal hidden states: SDXL with clip_skip=1 reads the third from the end.
        return TextStates((x, x, x), last_hidden_state, mean + self.pooler(mean))

    def layer_groups(self) -> list[list[nn.Module]]:
        """Group the layers as :meth:`~clip_guidance.towers.text.TextTower.layer_groups` says.

        The perceptron counts as the only block.
        """
        return [[self.embeddings, self.final_layer_norm], [self.pooler]]


class CBOWTextModel(TextTower):
    """Encode texts as bags of words; a drop-in ``text_encoder``.

    Args:
        config: A :class:`CBOWTextConfig`.

    Example:
        >>> import torch
        >>> from clip_guidance.towers import CBOWTextConfig, CBOWTextModel
        >>> tower = CBOWTextModel(CBOWTextConfig(vocab_size=1000, hidden_size=64))
        >>> tower(torch.tensor([[3, 1, 4]])).pooler_output.shape
        torch.Size([1, 64])
    """

    config_class = CBOWTextConfig

    @staticmethod
    def make_text_model(config: CBOWTextConfig) -> nn.Module:
        return BagOfWords(config)
