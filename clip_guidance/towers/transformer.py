"""The text transformer of CLIP (Radford et al. 2021, arXiv:2103.00020, section 2.4), pooled at the end-of-text token.

With ``causal=True``, as in CLIP, no token sees a later one, so padding behind the end of the text changes nothing and
:meth:`TransformerTextModel.to_clip_text_model` is an equal stock ``CLIPTextModel``, position by position. Without it
every token sees all the others and the padding is masked.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

# diffusers loads a class from a module only if it finds the class's base under its own name in that module
from transformers import PreTrainedModel as PreTrainedModel

from clip_guidance.towers.layers import Encoder
from clip_guidance.towers.text import TextConfig, TextEmbeddings, TextStates, TextTower, token_mask


class TransformerTextConfig(TextConfig):
    """Settings of the text transformer; see :class:`~clip_guidance.towers.text.TextConfig` for the others.

    Args:
        hidden_act: "quick_gelu" in OpenAI's weights, "gelu" elsewhere.
        causal: mask later tokens, as CLIP does.
    """

    model_type = "clip_guidance_text_transformer"

    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = "quick_gelu"
    causal: bool = True


class TextTransformer(nn.Module):
    """Embeddings, encoder, final norm: the keys of ``transformers``' ``CLIPTextModel``."""

    def __init__(self, config: TransformerTextConfig):
        super().__init__()
        self.config = config
        self.embeddings = TextEmbeddings(config, positions=config.max_position_embeddings)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> TextStates:
        hidden_states = self.encoder(self.embeddings(input_ids), *self._attention(input_ids, attention_mask))
        last_hidden_state = self.final_layer_norm(hidden_states[-1])
        end = input_ids.eq(self.config.eos_token_id).int().argmax(-1)  # the first: padding may be the same token
        pooled = last_hidden_state[torch.arange(len(end), device=end.device), end]
        return TextStates(hidden_states, last_hidden_state, pooled)

    def by_depth(self) -> list[list[nn.Module]]:
        """See :meth:`~clip_guidance.towers.text.TextTower.by_depth`."""
        return [[self.embeddings], *([layer] for layer in self.encoder.layers)]

    def _attention(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor | None, bool]:
        """The mask (B, 1, L, L) to add to attention, and whether plain causal attention says it all."""
        causal = self.config.causal
        if causal and attention_mask is None:
            return None, True
        mask = token_mask(input_ids, attention_mask, self.config.pad_token_id)[:, None, None, :]
        length = input_ids.shape[-1]
        square = torch.ones(length, length, dtype=torch.bool, device=input_ids.device)
        mask = mask & (square.tril() if causal else square)
        # a padded query must see something, else softmax over nothing is nan; itself is harmless
        return mask | torch.eye(length, dtype=torch.bool, device=input_ids.device), False


class TransformerTextModel(TextTower):
    """CLIP's text tower, a drop-in ``text_encoder``."""

    config_class = TransformerTextConfig
    supports_gradient_checkpointing = True

    @staticmethod
    def make_text_model(config: TransformerTextConfig) -> nn.Module:
        return TextTransformer(config)

    def to_clip_text_model(self) -> CLIPTextModel:
        """A stock ``CLIPTextModel`` with copies of these weights and equal outputs, for use without this package.

        A LoRA that was trained on transformers 5's ``CLIPTextModel`` names its layers without ``text_model.``:
        diffusers loads it into this model, and not into the tower itself.

        Raises:
            ValueError: the tower is not causal, which ``CLIPTextModel`` cannot be.
        """
        model = CLIPTextModel(self._clip_text_config())
        model.load_state_dict(self.text_model.state_dict())
        return model.to(self.device, self.dtype).eval()

    def to_clip_text_model_with_projection(self) -> CLIPTextModelWithProjection:
        """The same of a tower that projects: encoder 2 of SDXL, those of Stable Diffusion 3.

        Raises:
            ValueError: the tower is not causal, or has no projection.
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
        names = CLIPTextConfig().to_dict().keys() & self.config.to_dict().keys() - {"model_type", "architectures"}
        shared = {name: getattr(self.config, name) for name in names}
        return CLIPTextConfig(**{**shared, "projection_dim": self.config.projection_dim or 512})
