"""Convert the CLIP of ``transformers`` to ours: the architecture is the same, so weights are renamed key by key."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import CLIPModel

from clip_guidance.clip.config import CLIPConfig
from clip_guidance.towers import TransformerTextConfig, ViTConfig
from clip_guidance.towers.transformer import LARGEST_ID


def convert_transformers(source: CLIPModel) -> tuple[CLIPConfig, dict[str, Tensor]]:
    """Convert a CLIP of ``transformers`` to the config and the state dict of an equal CLIP.

    Args:
        source: The model; the returned tensors share its memory.

    Returns:
        The config, and the weights under the names that our CLIP gives them.
    """
    text_config = _shared_fields(TransformerTextConfig, source.config.text_config)
    if text_config.eos_token_id == LARGEST_ID:
        # OpenAI's configs carry this wrong id; transformers then pools at the largest id. That of the vocabulary is the
        # true one unless tokens were added; a tokenizer that CLIP is given says which, else such a text is refused.
        text_config.eos_token_id = text_config.vocab_size - 1
    config = CLIPConfig(
        text_config=text_config,
        vision_config=_shared_fields(ViTConfig, source.config.vision_config),
        projection_dim=source.config.projection_dim,
        logit_scale_init_value=source.config.logit_scale_init_value,
    )
    # The text_model of transformers is our text_encoder.text_model, its vision_model our image_encoder.vision_model.
    moved = {"text_model.": "text_encoder.text_model.", "vision_model.": "image_encoder.vision_model."}
    weights: dict[str, Tensor] = {}
    for key, value in source.state_dict().items():
        prefix = next((old for old in moved if key.startswith(old)), "")
        weights[moved.get(prefix, "") + key.removeprefix(prefix)] = value
    weights["logit_scale"] = weights["logit_scale"].reshape(1)
    return config, weights


def _shared_fields(cls: type, source: Any) -> Any:
    """Make a config of ``cls`` from the fields that it shares with ``source``."""
    values, own = source.to_dict(), cls().to_dict()
    # The projection belongs to the CLIP, not to its towers.
    shared = values.keys() & own.keys() - {"model_type", "architectures", "projection_dim", "transformers_version"}
    return cls(**{name: values[name] for name in shared})
