"""Continuous bag of words: a text is the mean of its tokens' embeddings (Mikolov et al. 2013, arXiv:1301.3781).

The mean passes a residual two-layer perceptron before the projection, which lets words interact ("red" + "apple").
The token embeddings are the sequence that a pipeline cross-attends to; they know neither order nor neighbours.
"""

from __future__ import annotations

from torch import Tensor, nn

# diffusers loads a class from a module only if it finds the class's base under its own name in that module
from transformers import PreTrainedModel as PreTrainedModel
from transformers.activations import ACT2FN

from clip_guidance.towers.layers import linear
from clip_guidance.towers.text import TextConfig, TextEmbeddings, TextStates, TextTower, token_mask


class CBOWTextConfig(TextConfig):
    """Settings of the bag of words; see :class:`~clip_guidance.towers.text.TextConfig` for the others.

    Args:
        intermediate_size: width of the perceptron behind the mean.
    """

    model_type = "clip_guidance_text_cbow"

    intermediate_size: int = 1024
    hidden_act: str = "gelu"


class BagOfWords(nn.Module):
    """Embeddings, final norm, masked mean, perceptron."""

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

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> TextStates:
        x = self.embeddings(input_ids)
        last_hidden_state = self.final_layer_norm(x)
        weight = token_mask(input_ids, attention_mask, self.config.pad_token_id)[..., None].to(x.dtype)
        mean = (last_hidden_state * weight).sum(1) / weight.sum(1).clamp(min=1)
        # three equal hidden states: SDXL with clip_skip=1 reads the third from the end
        return TextStates((x, x, x), last_hidden_state, mean + self.pooler(mean))

    def by_depth(self) -> list[list[nn.Module]]:
        """See :meth:`~clip_guidance.towers.text.TextTower.by_depth`; the perceptron is the one block."""
        return [[self.embeddings, self.final_layer_norm], [self.pooler]]


class CBOWTextModel(TextTower):
    """Bag-of-words text tower, a drop-in ``text_encoder``."""

    config_class = CBOWTextConfig

    @staticmethod
    def make_text_model(config: CBOWTextConfig) -> nn.Module:
        return BagOfWords(config)
