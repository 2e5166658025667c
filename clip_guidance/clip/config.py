"""The configuration of a CLIP: those of its two towers and of the space they share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from clip_guidance.towers import IMAGE_TOWERS, TEXT_TOWERS


class CLIPConfig(PreTrainedConfig):
    """Settings of a CLIP.

    Args:
        text_config: config of the text tower, or its dict with a ``model_type``.
        vision_config: the same of the image tower.
        projection_dim: size d of the common space.
        logit_scale_init_value: log of the inverse temperature at the start of training.
    """

    model_type = "clip_guidance"

    text_config: Any = None
    vision_config: Any = None
    projection_dim: int = 512
    logit_scale_init_value: float = math.log(1 / 0.07)

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = _tower_config("text_config", self.text_config, TEXT_TOWERS, "transformer")
        self.vision_config = _tower_config("vision_config", self.vision_config, IMAGE_TOWERS, "vit")
        super().__post_init__(**kwargs)


def _tower_config(name: str, value: Any, towers: Mapping[str, tuple[Any, Any]], default: str) -> Any:
    classes = {config_class.model_type: config_class for config_class, _ in towers.values()}
    if value is None:
        return towers[default][0]()
    if not isinstance(value, dict):
        return value
    if value.get("model_type") not in classes:
        raise ValueError(f"{name}: expected a model_type among {sorted(classes)}, got {value.get('model_type')!r}")
    return classes[value["model_type"]](**{k: v for k, v in value.items() if k != "model_type"})
