"""What a caller wants of a tower beside its pooled output, as ``transformers`` lets callers and configs say it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Wanted:
    """What a tower returns.

    Attributes:
        attentions: Whether the attention weights of each layer are returned.
        hidden_states: Whether the states before and after each layer are returned.
        return_dict: Whether the output is a ``ModelOutput``, rather than a tuple.
        eager: Whether attention weights are computed in any case, as ``attn_implementation`` "eager" has it.
    """

    attentions: bool
    hidden_states: bool
    return_dict: bool
    eager: bool

    @classmethod
    def of(
        cls,
        config: PreTrainedConfig,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
    ) -> Wanted:
        """Take what the arguments of a call say, and what the config says where one is None."""
        return cls(
            bool(config.output_attentions if output_attentions is None else output_attentions),
            bool(config.output_hidden_states if output_hidden_states is None else output_hidden_states),
            bool(config.return_dict if return_dict is None else return_dict),
            config._attn_implementation == "eager",
        )

    def collector(self) -> list[Tensor] | None:
        """Return an empty list for the layers to add their attentions to; None where they need not compute them."""
        return [] if self.attentions or self.eager else None

    def optional(
        self, hidden_states: tuple[Tensor, ...], attentions: list[Tensor] | None
    ) -> tuple[tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """Return the hidden states and the attentions, None for what is not wanted or what the tower has not."""
        return (
            hidden_states if self.hidden_states else None,
            tuple(attentions) if self.attentions and attentions else None,
        )
