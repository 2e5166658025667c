"""Convert CLIPs of ``transformers`` to ours and back: the architecture is the same, so weights are renamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import CLIPConfig as TransformersCLIPConfig
from transformers import CLIPModel, CLIPTextConfig, CLIPVisionConfig

from clip_guidance.clip.config import CLIPConfig
from clip_guidance.towers import TransformerTextConfig, ViTConfig
from clip_guidance.towers.transformer import LARGEST_ID

# Beginnings of names: those of transformers, and ours.
_NAMES = (("text_model.", "text_encoder.text_model."), ("vision_model.", "image_encoder.vision_model."))


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
    weights: dict[str, Tensor] = {}
    for key, value in source.state_dict().items():
        old, new = next((pair for pair in _NAMES if key.startswith(pair[0])), ("", ""))
        weights[new + key.removeprefix(old)] = value
    weights["logit_scale"] = weights["logit_scale"].reshape(1)
    return config, weights


def as_transformers(
    config: CLIPConfig, weights: Mapping[str, Tensor]
) -> tuple[TransformersCLIPConfig, dict[str, Tensor]]:
    """Give a CLIP of ours the config and the names of ``transformers``, as :func:`convert_transformers` reads them.

    Raises:
        ValueError: ``transformers`` has no equal CLIP: the towers are no plain transformers, or the end token is 2, by
            which it means the largest id.
    """
    check_equivalent(config, "transformers")
    if config.text_config.eos_token_id == LARGEST_ID:
        raise ValueError("transformers pools at the largest id where eos_token_id is 2, not at that token")
    theirs = TransformersCLIPConfig(
        text_config=_shared_fields(CLIPTextConfig, config.text_config).to_dict(),
        vision_config=_shared_fields(CLIPVisionConfig, config.vision_config).to_dict(),
        projection_dim=config.projection_dim,
        logit_scale_init_value=config.logit_scale_init_value,
    )
    renamed: dict[str, Tensor] = {}
    for key, value in weights.items():
        new, old = next((pair for pair in _NAMES if key.startswith(pair[1])), ("", ""))
        renamed[new + key.removeprefix(old)] = value
    renamed["logit_scale"] = renamed["logit_scale"].reshape(())
    return theirs, renamed


def check_equivalent(config: CLIPConfig, library: str) -> None:
    """Check that another library has the towers of a CLIP: a plain ViT and a causal text transformer.

    Args:
        config: Config of the CLIP.
        library: Name of the library, for the message.

    Raises:
        ValueError: The library has no such CLIP; the message names what it lacks.
    """
    vision, text = config.vision_config, config.text_config
    reason = ""
    if not isinstance(vision, ViTConfig):
        reason = "an image tower that is a ResNet of basic blocks"
    elif vision.stem_widths:
        reason = f"a convolutional stem (stem_widths {list(vision.stem_widths)!s:.60})"
    elif vision.pooling != "class":
        reason = f'an image tower with pooling "{vision.pooling}"'
    elif not isinstance(text, TransformerTextConfig):
        reason = "a text tower that is a bag of words"
    elif not text.causal:
        reason = "a text tower with causal=False"
    if reason:
        expected = "a ViT of linear patches that is pooled at its class token, and a causal text transformer"
        raise ValueError(f"{library} has no CLIP with {reason}: expected {expected}")


def _shared_fields(cls: type, source: Any) -> Any:
    """Make a config of ``cls`` from the fields that it shares with ``source``."""
    values, own = source.to_dict(), cls().to_dict()
    # The projection belongs to the CLIP, not to its towers.
    shared = values.keys() & own.keys() - {"model_type", "architectures", "projection_dim", "transformers_version"}
    return cls(**{name: values[name] for name in shared})
