"""The vision transformer of CLIP (Dosovitskiy et al. 2021, arXiv:2010.11929; Radford et al. 2021, section 2.4).

One linear patch embedding, a class token whose last state is the picture, and a norm before and after the encoder.
The keys are those of ``transformers``' ``CLIPVisionModel`` (its spelling of ``pre_layrnorm`` included).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# diffusers loads a class from a module only if it finds the class's base under its own name in that module
from transformers import PreTrainedModel as PreTrainedModel

from clip_guidance.towers.image import ImageConfig, ImageStates, ImageTower
from clip_guidance.towers.layers import Encoder


class ViTConfig(ImageConfig):
    """Settings of the vision transformer; see :class:`~clip_guidance.towers.image.ImageConfig` for the others.

    Args:
        patch_size: side of a patch in pixels; divides ``image_size``.
        hidden_act: "quick_gelu" in OpenAI's weights, "gelu" elsewhere.
    """

    model_type = "clip_guidance_vit"

    patch_size: int = 32
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "quick_gelu"


class PatchEmbeddings(nn.Module):
    """A class token and the embedded patches, with learned positions."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)
        nn.init.normal_(self.patch_embedding.weight, std=(config.num_channels * patch**2) ** -0.5)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 1 + patches, D)."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([class_token, patches], 1) + self.position_embedding.weight


class VisionTransformer(nn.Module):
    """Embeddings, norm, encoder; the class token's state, normed, is the pooled output."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.embeddings = PatchEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> ImageStates:
        hidden_states = self.encoder(self.pre_layrnorm(self.embeddings(pixel_values)))
        pooled = self.post_layernorm(hidden_states[-1][:, 0])
        return ImageStates(hidden_states, hidden_states[-1], pooled)


class ViTModel(ImageTower):
    """CLIP's ViT image tower."""

    config_class = ViTConfig

    @staticmethod
    def make_vision_model(config: ViTConfig) -> nn.Module:
        return VisionTransformer(config)
