"""The text transformer of CLIP (Radford et al. 2021, arXiv:2103.00020, section 2.4), pooled at the end-of-text token.

With ``causal=True``, as in CLIP, no token attends to a later one: padding after the end of a text changes nothing, and
:meth:`TransformerTextModel.to_clip_text_model` returns a stock ``CLIPTextModel`` with equal outputs at every position.
With ``causal=False`` every token attends to all the others, and the padding is masked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

# diffusers loads a class from a module only if the name of the class's base is in that module too.
from transformers import PreTrainedModel as PreTrainedModel

from clip_guidance.towers.checks import check_blocks
from clip_guidance.towers.layers import Encoder
from clip_guidance.towers.text import TextConfig, TextEmbeddings, TextStates, TextTower, end_of_text, token_mask

LARGEST_ID = 2  # configs of transformers with this eos_token_id mean: the text ends at the largest id of the row


class TransformerTextConfig(TextConfig):
    """Configure a :class:`TransformerTextModel`.

    The other settings are those of :class:`~clip_guidance.towers.text.TextConfig`.

    Args:
        intermediate_size: Hidden width of the perceptron in each block.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Number of heads; divides ``hidden_size``.
        hidden_act: Activation of the perceptrons: "quick_gelu" in OpenAI's weights, "gelu" elsewhere.
        causal: Whether later tokens are masked, as in CLIP.

    Raises:
        ValueError: A size is out of range, the heads do not divide the width, or the activation is unknown.

    Example:
        >>> import clip_guidance as cg
        >>> cg.towers.TransformerTextConfig(vocab_size=1000, num_hidden_layers=2).hidden_size
        512
    """

    model_type = "clip_guidance_text_transformer"

    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = "quick_gelu"
    causal: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_blocks(self)


class TextTransformer(nn.Module):
    """Compute embeddings, encoder and final norm, in parameter names of ``CLIPTextModel``."""

    def __init__(self, config: TransformerTextConfig):
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config, positions=config.max_position_embeddings)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, attentions: list[Tensor] | None = None
    ) -> TextStates:
        mask, is_causal = self._attention(input_ids, attention_mask)
        hidden_states = self.encoder(self.embeddings(input_ids), mask, is_causal, attentions)
        last_hidden_state = self.final_layer_norm(hidden_states[-1])
        end = end_of_text(input_ids, self.config.eos_token_id)
        pooled = last_hidden_state[torch.arange(len(end), device=end.device), end]
        return TextStates(hidden_states, last_hidden_state, pooled)

    def layer_groups(self) -> list[list[nn.Module]]:
        """Group the layers as :meth:`~clip_guidance.towers.text.TextTower.layer_groups` says."""
        return [[self.embeddings], *([layer] for layer in self.encoder.layers)]

    def _attention(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor | None, bool]:
        """Return the attention mask (B, 1, L, L), and whether to attend causally without a mask."""
        causal = self.config.causal
        if causal and attention_mask is None:
            return None, True
        mask = token_mask(input_ids, attention_mask, self.config.pad_token_id)[:, None, None, :]
        length = input_ids.shape[-1]
        square = torch.ones(length, length, dtype=torch.bool, device=input_ids.device)
        mask = mask & (square.tril() if causal else square)
        # A padded query must attend to something, since the softmax over nothing is NaN; itself is harmless.
        return mask | torch.eye(length, dtype=torch.bool, device=input_ids.device), False


class TransformerTextModel(TextTower):
    """Encode texts with CLIP's transformer; a drop-in ``text_encoder``.

    Args:
        config: A :class:`TransformerTextConfig`.

    Example:
        >>> import torch
        >>> from clip_guidance.towers import TransformerTextConfig, TransformerTextModel
        >>> config = TransformerTextConfig(vocab_size=100, hidden_size=64, num_hidden_layers=2, eos_token_id=99)
        >>> TransformerTextModel(config)(torch.tensor([[98, 5, 7, 99]])).last_hidden_state.shape
        torch.Size([1, 4, 64])
    """

    config_class = TransformerTextConfig
    supports_gradient_checkpointing = True

    @staticmethod
    def make_text_model(config: TransformerTextConfig) -> nn.Module:
        return TextTransformer(config)

    def to_clip_text_model(self) -> CLIPTextModel:
        """Copy the weights into a stock ``CLIPTextModel`` with equal outputs.

        The copy is used without this package. A LoRA that was trained on transformers 5's ``CLIPTextModel`` names its
        layers without ``text_model.``: diffusers loads it into the stock model, and not into this tower.

        Raises:
            ValueError: The tower was made with ``causal=False``, and ``CLIPTextModel`` is always causal; or its end
                token is 2, by which ``CLIPTextModel`` means the largest id.
        """
        model = CLIPTextModel(self._clip_text_config())
        model.load_state_dict(self.text_model.state_dict())
        return model.to(self.device, self.dtype).eval()

    def to_clip_text_model_with_projection(self) -> CLIPTextModelWithProjection:
        """Copy a tower with a projection into a stock ``CLIPTextModelWithProjection``.

        Encoder 2 of SDXL and the CLIP encoders of Stable Diffusion 3 are such models.

        Raises:
            ValueError: The tower has no projection, or there is no equal ``CLIPTextModel``.
        """
        if self.text_projection is None:
            raise ValueError("this tower has no projection; CLIP.text_encoder_with_projection() does")
        model = CLIPTextModelWithProjection(self._clip_text_config())
        model.text_model.load_state_dict(self.text_model.state_dict())
        model.text_projection.load_state_dict(self.text_projection.state_dict())
        return model.to(self.device, self.dtype).eval()

    def _clip_text_config(self) -> CLIPTextConfig:
        if not self.config.causal:
            raise ValueError("CLIPTextModel attends causally; this tower was made with causal=False")
        if self.config.eos_token_id == LARGEST_ID:
            raise ValueError("CLIPTextModel pools at the largest id where eos_token_id is 2, not at that token")
        names = CLIPTextConfig().to_dict().keys() & self.config.to_dict().keys() - {"model_type", "architectures"}
        shared = {name: getattr(self.config, name) for name in names}
        return CLIPTextConfig(**{**shared, "projection_dim": self.config.projection_dim or 512})
