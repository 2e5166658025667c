"""The base of the text towers: the interface that diffusers' pipelines, LoRA and textual inversion expect.

The submodule ``text_model`` computes the hidden states, and the ``PreTrainedModel`` around it returns them as
``transformers``' CLIP does: ``hidden_states[-1]`` before the final norm, ``last_hidden_state`` after it, and
``pooler_output``, one vector per text. Without ``projection_dim`` the first entry of the output is the sequence (Stable
Diffusion 1 and 2, encoder 1 of SDXL); with it the first entry is ``text_embeds`` (encoder 2 of SDXL, Stable Diffusion
3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from clip_guidance.towers.checks import check_counts, check_norm, check_token_ids
from clip_guidance.towers.layers import SelfInitialised, linear
from clip_guidance.towers.outputs import Wanted


class TextConfig(PreTrainedConfig):
    """Hold the settings that every text tower has.

    Args:
        vocab_size: Number of tokens in the vocabulary.
        hidden_size: Width D of the token states.
        max_position_embeddings: Context length L; equals the tokenizer's ``model_max_length``.
        projection_dim: Size of ``text_embeds``; None for a tower that ends with the pooled state.
        layer_norm_eps: Added to the variance in every layer norm.
        bos_token_id: Token at the start of a text.
        eos_token_id: Token at the end of a text.
        pad_token_id: Token that fills a text up; differs from ``eos_token_id``, so that the mask follows from the ids.

    Raises:
        ValueError: A size is no whole number of at least 1, or an id none of at least 0.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    max_position_embeddings: int = 77
    projection_dim: int | None = None
    layer_norm_eps: float = 1e-5
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    pad_token_id: int | None = 1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_counts(self, "vocab_size", "hidden_size", "max_position_embeddings")
        if self.projection_dim is not None:
            check_counts(self, "projection_dim")
        check_norm(self)
        check_token_ids(self)


@dataclass
class TextStates:
    """What a ``text_model`` returns.

    Attributes:
        hidden_states: Tensors (B, L, D), the last one before the final norm.
        last_hidden_state: (B, L, D), after the final norm.
        pooler_output: (B, D).
    """

    hidden_states: tuple[Tensor, ...]
    last_hidden_state: Tensor
    pooler_output: Tensor


class TextTower(SelfInitialised, PreTrainedModel):
    """Base of the text towers.

    Subclasses make ``text_model``, which maps (input_ids, attention_mask) to :class:`TextStates`, and adds its
    attentions to a third argument where it has some.

    Args:
        config: The config of the subclass.
    """

    base_model_prefix = ""
    input_modalities = ("text",)
    main_input_name = "input_ids"

    def __init__(self, config: TextConfig):
        super().__init__(config)
        self.text_model: Any = self.make_text_model(config)
        self.text_projection: nn.Linear | None = None
        if config.projection_dim is not None:
            self.text_projection = linear(config.hidden_size, config.projection_dim, bias=False)
        self.post_init()

    @staticmethod
    def make_text_model(config: Any) -> nn.Module:
        raise TypeError("TextTower is abstract: use TransformerTextModel or CBOWTextModel")

    def layer_groups(self) -> list[list[nn.Module]]:
        """Group the layers by depth: first the embeddings, then one group per block.

        What follows the last block, a norm or a projection, is in no group.
        """
        return self.text_model.layer_groups()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.embeddings.token_embedding = value

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Any:
        """Encode a batch of texts.

        Args:
            input_ids: Int64 (B, L), L at most ``config.max_position_embeddings``.
            attention_mask: (B, L), 1 where there is a token; by default where the id is not ``pad_token_id``.
            output_hidden_states: Whether to return ``hidden_states`` too; by default as the config says.
            return_dict: False returns a tuple; by default as the config says.
            output_attentions: Whether to return ``attentions`` too, (B, heads, L, L) of each layer, None from a tower
                without attention; by default as the config says.

        Returns:
            ``BaseModelOutputWithPooling``, or ``CLIPTextModelOutput`` where the tower has a projection.

        Raises:
            ValueError: L exceeds the context, or a text that is pooled at its end has no ``config.eos_token_id``.
        """
        limit = self.config.max_position_embeddings
        if input_ids.shape[-1] > limit:
            raise ValueError(f"expected input_ids of at most {limit} tokens, got shape {tuple(input_ids.shape)}")
        wanted = Wanted.of(self.config, output_attentions, output_hidden_states, return_dict)
        attentions = wanted.collector()
        states = self.text_model(input_ids.view(-1, input_ids.shape[-1]), attention_mask, attentions)
        optional = wanted.optional(states.hidden_states, attentions)
        if self.text_projection is None:
            output: Any = BaseModelOutputWithPooling(states.last_hidden_state, states.pooler_output, *optional)
        else:
            embeds = self.text_projection(states.pooler_output)
            output = CLIPTextModelOutput(embeds, states.last_hidden_state, *optional)
        return output if wanted.return_dict else output.to_tuple()


class TextEmbeddings(nn.Module):
    """Embed tokens, and add learned positions where ``positions`` is not 0."""

    def __init__(self, config: TextConfig, positions: int):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(positions, config.hidden_size) if positions else None
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        if self.position_embedding is not None:
            nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map int64 (B, L) to (B, L, D)."""
        x = self.token_embedding(input_ids)
        if self.position_embedding is not None:
            x = x + self.position_embedding.weight[: input_ids.shape[-1]]
        return x


def end_of_text(input_ids: Tensor, eos_token_id: int) -> Tensor:
    """Find where each text ends: at the first end token, because the padding may be the same token.

    Args:
        input_ids: Int64 (B, L).
        eos_token_id: The end token.

    Returns:
        Int64 (B,).

    Raises:
        ValueError: A row has no end token; any other place would be the state of an arbitrary token. Inside a compiled
            graph, which cannot depend on values, this is not checked.
    """
    is_end = input_ids == eos_token_id
    if not torch.compiler.is_compiling() and not (found := is_end.any(-1)).all():
        row = int(found.int().argmin())
        raise ValueError(
            f"input_ids, row {row}: expected the end token {eos_token_id} (eos_token_id, which is the tokenizer's), "
            f"got {input_ids[row].tolist()!s:.120}"
        )
    return is_end.int().argmax(-1)


def token_mask(input_ids: Tensor, attention_mask: Tensor | None, pad_token_id: int | None) -> Tensor:
    """Make a bool mask (B, L): the mask given, else True for whatever is not padding."""
    if attention_mask is not None:
        return attention_mask.bool()
    if pad_token_id is None:
        return torch.ones_like(input_ids, dtype=torch.bool)
    return input_ids != pad_token_id
