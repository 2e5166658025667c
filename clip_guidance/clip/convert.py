"""``transformers``' CLIP into ours: the same architecture, so the weights move key by key."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPModel, PreTrainedTokenizerBase

from clip_guidance.clip import CLIP, CLIPConfig
from clip_guidance.clip.image_processor import ImageProcessor
from clip_guidance.towers import TransformerTextConfig, ViTConfig


def from_transformers(source: CLIPModel, tokenizer: PreTrainedTokenizerBase, image_processor: ImageProcessor) -> CLIP:
    """A :class:`CLIP` with the weights of ``source`` and equal embeddings."""
    text_config = _config(TransformerTextConfig, source.config.text_config)
    if text_config.eos_token_id == 2:
        # OpenAI's configs carry this wrong id; transformers then pools at the largest id, which is the true one
        text_config.eos_token_id = text_config.vocab_size - 1
    config = CLIPConfig(
        text_config=text_config,
        vision_config=_config(ViTConfig, source.config.vision_config),
        projection_dim=source.config.projection_dim,
        logit_scale_init_value=source.config.logit_scale_init_value,
    )
    model = CLIP(config, tokenizer, image_processor).to(source.dtype)
    # CLIPModel.text_model is our text_encoder.text_model, its vision_model our image_encoder.vision_model
    moved = {"text_model.": "text_encoder.text_model.", "vision_model.": "image_encoder.vision_model."}
    weights: dict[str, torch.Tensor] = {}
    for key, value in source.state_dict().items():
        prefix = next((old for old in moved if key.startswith(old)), "")
        weights[moved.get(prefix, "") + key.removeprefix(prefix)] = value
    weights["logit_scale"] = weights["logit_scale"].reshape(1)
    model.load_state_dict(weights)
    return model


def _config(cls: type, source: Any) -> Any:
    """The fields that both configs have; the projection belongs to the CLIP, not to its towers."""
    values, own = source.to_dict(), cls().to_dict()
    shared = values.keys() & own.keys() - {"model_type", "architectures", "projection_dim", "transformers_version"}
    return cls(**{name: values[name] for name in shared})
