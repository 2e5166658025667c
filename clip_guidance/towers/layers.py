"""The pre-norm transformer that the ViT and the text transformer share (Vaswani et al. 2017; Radford et al. 2021, 2.4).

Module names are those of ``transformers``' CLIP (``self_attn.q_proj``, ``mlp.fc1`` ...): weights load key by key, and
tools that select layers by name (LoRA) find them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer


def linear(inputs: int, outputs: int, std: float | None = None, bias: bool = True) -> nn.Linear:
    """Make a linear map with normal weights and zero bias.

    Args:
        inputs: Width of the input.
        outputs: Width of the output.
        std: Standard deviation of the weights; by default inputs ** -0.5. The towers scale it with width and depth
            as OpenAI's ``initialize_parameters`` does.
        bias: Whether the map has a bias.
    """
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=inputs**-0.5 if std is None else std)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class SelfInitialised:
    """Keep ``PreTrainedModel`` from initialising weights, which the modules have done already."""

    _supports_sdpa = True  # so that it is the default; "eager" computes attention in two products

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights as they are; buffers that were in no checkpoint get their first values."""
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)


class Attention(nn.Module):
    """Compute multi-head self-attention."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        width, depth = config.hidden_size, config.num_hidden_layers
        self.q_proj, self.k_proj, self.v_proj = (linear(width, width, std=width**-0.5) for _ in range(3))
        self.out_proj = linear(width, width, std=(2 * depth * width) ** -0.5)

    def forward(
        self, x: Tensor, mask: Tensor | None, is_causal: bool, attentions: list[Tensor] | None = None
    ) -> Tensor:
        """Attend from x (B, L, D) to x.

        Args:
            x: The states.
            mask: Broadcasts to (B, heads, L, L), and is True where a query may attend.
            is_causal: Whether no query attends to a later key; ``mask`` is None then.
            attentions: Where given, the weights (B, heads, L, L) are computed by themselves, and added to it.
        """
        q, k, v = (
            proj(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, L, D / heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if attentions is None:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
        else:
            weights = attention_weights(q, k, mask, is_causal)
            attentions.append(weights)
            x = weights @ v
        return self.out_proj(x.transpose(1, 2).flatten(2))


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Compute the softmax of q·k / √d over the keys, as ``scaled_dot_product_attention`` does inside.

    Args:
        q: Queries (B, heads, L, d).
        k: Keys (B, heads, L, d).
        mask: As for :class:`Attention`.
        is_causal: As for :class:`Attention`.

    Returns:
        (B, heads, L, L), in the precision of ``q``.
    """
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1, dtype=torch.float32 if q.dtype != torch.float64 else None).to(q.dtype)


class MLP(nn.Module):
    """Apply two linear maps with an activation between them."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        width, depth = config.hidden_size, config.num_hidden_layers
        self.fc1 = linear(width, config.intermediate_size, std=(2 * width) ** -0.5)
        self.fc2 = linear(config.intermediate_size, width, std=(2 * depth * width) ** -0.5)
        self.activation_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(x)))


class EncoderLayer(GradientCheckpointingLayer):
    """Compute x + attention(norm(x)), then x + mlp(norm(x)).

    After ``model.gradient_checkpointing_enable()`` of ``transformers`` the base class computes the layer again in the
    backward pass instead of keeping its activations (Chen et al. 2016, arXiv:1604.06174).
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, mask: Tensor | None, is_causal: bool, attentions: list[Tensor] | None = None
    ) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask, is_causal, attentions)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """Apply a stack of layers; keep the input of each layer and the output of the last."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        is_causal: bool = False,
        attentions: list[Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """Map (B, L, D) to ``num_hidden_layers + 1`` tensors (B, L, D).

        Where ``attentions`` is given, each layer adds its attention to it, as :class:`Attention` does.
        """
        hidden_states = [x]
        for layer in self.layers:
            hidden_states.append(layer(hidden_states[-1], mask, is_causal, attentions))
        return tuple(hidden_states)
