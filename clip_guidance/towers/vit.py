"""The vision transformer of CLIP (Dosovitskiy et al. 2021, arXiv:2010.11929; Radford et al. 2021, section 2.4).

It has a linear patch embedding, a class token whose last state represents the image, and a norm before and after the
encoder. Parameter names are those of ``transformers``' ``CLIPVisionModel`` (its spelling of ``pre_layrnorm`` included).

A small ViT learns little from little data. Two settings of the config help: the tokens of a short ResNet in place of
linear patches ("hybrid architecture" of Dosovitskiy et al., section 3.1), and the mean over the tokens in place of the
class token (Beyer et al. 2022, arXiv:2205.01580).

During training a share of the patches can be left out (FLIP, Li et al. 2023, arXiv:2212.00794, section 3), which makes
a step cheaper by about that share.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

# diffusers loads a class from a module only if the name of the class's base is in that module too.
from transformers import PreTrainedModel as PreTrainedModel
from transformers.activations import ACT2FN

from clip_guidance.towers.checks import check_activation, check_blocks, check_counts, check_lists
from clip_guidance.towers.image import ImageConfig, ImageStates, ImageTower
from clip_guidance.towers.layers import Encoder
from clip_guidance.towers.resnet import Block, ResNetConfig, conv_norm


class ViTConfig(ImageConfig):
    """Configure a :class:`ViTModel`.

    The other settings are those of :class:`~clip_guidance.towers.image.ImageConfig`.

    Args:
        patch_size: Side of a patch in pixels; divides ``image_size``.
        intermediate_size: Hidden width of the perceptron in each block.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Number of heads; divides ``hidden_size``.
        hidden_act: Activation of the perceptrons: "quick_gelu" in OpenAI's weights, "gelu" elsewhere.
        stem_widths: Channels of the residual stages that make the tokens; None for one linear map per patch. A stem
            halves the side before each stage, so ``patch_size`` must be 2 ** stages.
        stem_act: Activation in that stem. "relu" makes the gradient with respect to the pixels jump, so that rounding
            can change a guided image; with a smooth one such as "gelu" it cannot.
        pooling: What the pooled output is: the state of the "class" token, or the "mean" of all tokens.

    Raises:
        ValueError: A size is out of range, the heads do not divide the width, an activation is unknown,
            ``stem_widths`` and ``patch_size`` do not fit, or ``pooling`` is something else.

    Example:
        >>> import clip_guidance as cg
        >>> cg.towers.ViTConfig(image_size=64, patch_size=8, num_hidden_layers=4).pooling
        'class'
    """

    model_type = "clip_guidance_vit"

    patch_size: int = 32
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    hidden_act: str = "quick_gelu"
    stem_widths: list[int] | None = None
    stem_act: str = "relu"
    pooling: str = "class"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_blocks(self)
        check_activation(self, "stem_act")
        check_counts(self, "patch_size", most=self.image_size)
        if self.stem_widths:
            check_lists(self, "stem_widths", least=2)
        if self.stem_widths and 2 ** len(self.stem_widths) != self.patch_size:
            raise ValueError(
                f"stem_widths {list(self.stem_widths)} make patches of side {2 ** len(self.stem_widths)}, expected "
                f"those of patch_size {self.patch_size}"
            )
        if self.pooling not in ("class", "mean"):
            raise ValueError(f'pooling: expected "class" or "mean", got {self.pooling!r:.60}')


class ConvStem(nn.Sequential):
    """Map (B, 3, H, W) to (B, D, H / patch, W / patch) with the first stages of :mod:`.resnet`."""

    def __init__(self, config: ViTConfig):
        widths = list(config.stem_widths or ())
        sizes: dict[str, Any] = {"hidden_sizes": widths, "depths": [1] * len(widths)}
        resnet = ResNetConfig(image_size=config.image_size, hidden_act=config.stem_act, **sizes)
        layers: list[nn.Module] = [
            conv_norm(resnet, config.num_channels, widths[0] // 2),
            ACT2FN[config.stem_act],
            nn.AvgPool2d(2),
            conv_norm(resnet, widths[0] // 2, widths[0]),
            ACT2FN[config.stem_act],
            Block(resnet, widths[0], widths[0], stride=1),
        ]
        layers += [Block(resnet, i, o, stride=2) for i, o in itertools.pairwise(widths)]
        last = nn.Conv2d(widths[-1], config.hidden_size, 1)
        nn.init.normal_(last.weight, std=widths[-1] ** -0.5)
        nn.init.constant_(last.get_parameter("bias"), 0.0)
        super().__init__(*layers, last)


class PatchEmbeddings(nn.Module):
    """Embed the patches, prepend a class token, and add learned positions."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.patch_embedding: nn.Module
        if not config.stem_widths:
            self.patch_embedding = nn.Conv2d(config.num_channels, width, patch, stride=patch, bias=False)
            nn.init.normal_(self.patch_embedding.weight, std=(config.num_channels * patch**2) ** -0.5)
        else:
            self.patch_embedding = ConvStem(config)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, width)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 1 + patches, D)."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat([class_token, patches], 1) + self.position_embedding.weight


def drop_patches(tokens: Tensor, share: float) -> Tensor:
    """Keep the class token and a random subset of the patches, drawn for each image by itself.

    The subset is drawn from torch's global random state. Its order does not matter: positions were added to the tokens
    before.

    Args:
        tokens: (B, 1 + patches, D), the class token first.
        share: Share of the patches that is left out, in [0, 1).

    Returns:
        (B, 1 + kept, D), kept = (1 - share) · patches, rounded, but at least 1.
    """
    patches = tokens.shape[1] - 1
    kept = max(1, round(patches * (1 - share)))
    chosen = torch.rand(len(tokens), patches, device=tokens.device).topk(kept).indices + 1
    class_token = chosen.new_zeros(len(tokens), 1)
    where = torch.cat([class_token, chosen], 1)[..., None].expand(-1, -1, tokens.shape[-1])
    return tokens.gather(1, where)


class VisionTransformer(nn.Module):
    """Compute embeddings, norm, encoder, pooling and norm.

    Attributes:
        patch_dropout: Share of the patches that is left out in training mode, in [0, 1). It is not part of the config,
            because it changes what a step costs and not what the model is.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.pooling = config.pooling
        self.patch_dropout = 0.0
        self.embeddings = PatchEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor, attentions: list[Tensor] | None = None) -> ImageStates:
        tokens = self.embeddings(pixel_values)
        if self.training and self.patch_dropout:
            tokens = drop_patches(tokens, self.patch_dropout)
        hidden_states = self.encoder(self.pre_layrnorm(tokens), attentions=attentions)
        states = hidden_states[-1]
        pooled = self.post_layernorm(states.mean(1) if self.pooling == "mean" else states[:, 0])
        return ImageStates(hidden_states, states, pooled)

    def layer_groups(self) -> list[list[nn.Module]]:
        """Group the layers as :meth:`~clip_guidance.towers.image.ImageTower.layer_groups` says."""
        return [[self.embeddings, self.pre_layrnorm], *([layer] for layer in self.encoder.layers)]


class ViTModel(ImageTower):
    """Encode images with CLIP's vision transformer.

    Args:
        config: A :class:`ViTConfig`.

    Example:
        >>> import torch
        >>> from clip_guidance.towers import ViTConfig, ViTModel
        >>> tower = ViTModel(ViTConfig(image_size=32, patch_size=8, hidden_size=48, num_hidden_layers=2))
        >>> tower(torch.rand(2, 3, 32, 32)).last_hidden_state.shape
        torch.Size([2, 17, 48])
    """

    config_class = ViTConfig
    supports_gradient_checkpointing = True

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.embeddings.patch_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vision_model.embeddings.patch_embedding = value

    @staticmethod
    def make_vision_model(config: ViTConfig) -> nn.Module:
        return VisionTransformer(config)
