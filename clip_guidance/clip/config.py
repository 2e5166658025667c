"""The configuration of a CLIP: the configurations of its two towers and of their common space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from clip_guidance.towers import IMAGE_TOWERS, TEXT_TOWERS
from clip_guidance.towers.checks import check_counts

MOST_START = 50.0  # of the log of the inverse temperature: e**50 times a cosine is not a likelihood of anything


class CLIPConfig(PreTrainedConfig):
    """Describe a CLIP: its text tower, its image tower and the space in which they meet.

    Args:
        text_config: Config of the text tower, or its dict with a ``model_type``; by default a transformer of the size
            of OpenAI's ViT-B/32.
        vision_config: Config of the image tower, or its dict with a ``model_type``; by default a ViT-B/32.
        projection_dim: Size d of the embeddings.
        logit_scale_init_value: Log of the inverse temperature at the start of training; the default is ln(1 / 0.07),
            as in Radford et al. 2021 (arXiv:2103.00020), section 2.5.

    Raises:
        ValueError: A config is not one of our towers', or a setting of it is out of range; or the size or the
            temperature is.

    Example:
        >>> import clip_guidance as cg
        >>> from clip_guidance.towers import CBOWTextConfig, ResNetConfig
        >>> text, vision = CBOWTextConfig(vocab_size=1000), ResNetConfig(image_size=64)
        >>> config = cg.CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)
        >>> config.vision_config.model_type, config.projection_dim
        ('clip_guidance_resnet', 128)
    """

    model_type = "clip_guidance"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": PreTrainedConfig, "vision_config": PreTrainedConfig}

    text_config: Any = None
    vision_config: Any = None
    projection_dim: int = 512
    logit_scale_init_value: float = math.log(1 / 0.07)

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = _tower_config("text_config", self.text_config, TEXT_TOWERS, "transformer")
        self.vision_config = _tower_config("vision_config", self.vision_config, IMAGE_TOWERS, "vit")
        super().__post_init__(**kwargs)
        check_counts(self, "projection_dim")
        start = self.logit_scale_init_value
        if type(start) not in (int, float) or not abs(start) < MOST_START:
            raise ValueError(f"logit_scale_init_value: expected a number within ±{MOST_START}, got {start!r:.60}")


def tower_class(config: PreTrainedConfig) -> Any:
    """Return the class of the tower that a config configures.

    Raises:
        ValueError: The config is not one of our towers'.
    """
    for config_class, model_class in (*TEXT_TOWERS.values(), *IMAGE_TOWERS.values()):
        if type(config) is config_class:
            return model_class
    raise ValueError(f"no tower for a config of type {type(config).__name__}")


def _tower_config(name: str, value: Any, towers: Mapping[str, tuple[Any, Any]], default: str) -> Any:
    classes = {config_class.model_type: config_class for config_class, _ in towers.values()}
    if value is None:
        return towers[default][0]()
    if isinstance(value, tuple(classes.values())):
        return value
    if not isinstance(value, dict):
        expected = ", ".join(config_class.__name__ for config_class in classes.values())
        raise ValueError(f"{name}: expected one of {expected}, or its dict, got {value!r:.60}")
    kind = value.get("model_type")
    if not isinstance(kind, str) or kind not in classes:
        raise ValueError(f"{name}: expected a model_type among {sorted(classes)}, got {kind!r:.60}")
    try:
        return classes[kind](**{k: v for k, v in value.items() if k != "model_type"})
    except Exception as error:  # of any kind, from the fields of transformers' own config
        raise ValueError(f"{name}: {' '.join(str(error).split()):.240}") from error
