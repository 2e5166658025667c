"""Image and text towers, by the names that recipes and configs use, registered with transformers' Auto classes.

Saved pipelines store these module paths in their ``model_index.json``; keep them stable.
"""

from typing import Any

from transformers import AutoConfig, AutoModel

from clip_guidance.towers.cbow import CBOWTextConfig as CBOWTextConfig
from clip_guidance.towers.cbow import CBOWTextModel as CBOWTextModel
from clip_guidance.towers.image import ImageConfig as ImageConfig
from clip_guidance.towers.image import ImageTower as ImageTower
from clip_guidance.towers.resnet import ResNetConfig as ResNetConfig
from clip_guidance.towers.resnet import ResNetModel as ResNetModel
from clip_guidance.towers.text import TextConfig as TextConfig
from clip_guidance.towers.text import TextTower as TextTower
from clip_guidance.towers.transformer import TransformerTextConfig as TransformerTextConfig
from clip_guidance.towers.transformer import TransformerTextModel as TransformerTextModel
from clip_guidance.towers.vit import ViTConfig as ViTConfig
from clip_guidance.towers.vit import ViTModel as ViTModel

IMAGE_TOWERS: dict[str, tuple[type[ImageConfig], type[ImageTower]]] = {
    "vit": (ViTConfig, ViTModel),
    "resnet": (ResNetConfig, ResNetModel),
}
TEXT_TOWERS: dict[str, tuple[type[TextConfig], type[TextTower]]] = {
    "transformer": (TransformerTextConfig, TransformerTextModel),
    "cbow": (CBOWTextConfig, CBOWTextModel),
}

_config: Any
for _config, _model in (*IMAGE_TOWERS.values(), *TEXT_TOWERS.values()):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
