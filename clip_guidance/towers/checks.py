"""Checks of the towers' configs: what cannot be built is refused by the name of the setting, before it is built."""

from __future__ import annotations

import difflib
import math

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

MOST_LAYERS = 1000  # a config that asks for more is damaged, and would be built for hours


def check_counts(config: PreTrainedConfig, *names: str, most: float = math.inf) -> None:
    """Check that settings of a config are whole numbers.

    Args:
        config: Config of a tower.
        names: Names of the settings.
        most: Largest number that is accepted; the smallest is 1.

    Raises:
        ValueError: A setting is something else; the message names it and its value.
    """
    span = f"1 to {most}" if most < math.inf else "at least 1"
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name}: expected {span}, got {value!s:.60}")


def check_lists(config: PreTrainedConfig, *names: str, least: int = 1) -> None:
    """Check that settings of a config are lists of whole numbers, none of them empty.

    Raises:
        ValueError: A setting is something else; the message names it and its value.
    """
    for name in names:
        values = getattr(config, name)
        if not isinstance(values, list | tuple) or not values or any(type(n) is not int or n < least for n in values):
            raise ValueError(f"{name}: expected numbers of at least {least}, one per stage, got {values!s:.60}")


def check_blocks(config: PreTrainedConfig) -> None:
    """Check the settings of a stack of transformer blocks.

    Raises:
        ValueError: A size is out of range, the heads do not divide the width, or the activation is unknown.
    """
    check_counts(config, "hidden_size", "intermediate_size", "num_attention_heads")
    check_counts(config, "num_hidden_layers", most=MOST_LAYERS)
    width, heads = config.hidden_size, config.num_attention_heads
    if width % heads:
        raise ValueError(f"hidden_size: expected a multiple of the {heads} attention heads, got {width}")
    check_activation(config)


def check_activation(config: PreTrainedConfig, setting: str = "hidden_act") -> None:
    """Check the name of a config's activation, ``hidden_act`` or another setting.

    Raises:
        ValueError: transformers has no activation of this name; the message suggests some.
    """
    name = getattr(config, setting)
    if not isinstance(name, str) or name not in ACT2FN:
        known = difflib.get_close_matches(str(name), ACT2FN, n=3) or ["quick_gelu", "gelu", "relu"]
        raise ValueError(f"{setting}: expected an activation such as {', '.join(known)}, got {name!r:.60}")


def check_token_ids(config: PreTrainedConfig) -> None:
    """Check the ids of a config's special tokens; they may lie outside the vocabulary, which transformers allows.

    Raises:
        ValueError: An id is no whole number of at least 0.
    """
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name)
        if value is not None and (type(value) is not int or value < 0):
            raise ValueError(f"{name}: expected the id of a token, got {value!r:.60}")


def check_norm(config: PreTrainedConfig) -> None:
    """Check the number that is added to the variance in every norm.

    Raises:
        ValueError: It is not a finite number above 0.
    """
    eps = config.layer_norm_eps
    if type(eps) not in (int, float) or not 0 < eps < math.inf:
        raise ValueError(f"layer_norm_eps: expected a number above 0, got {eps!r:.60}")
