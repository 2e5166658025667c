"""The ResNet of CLIP, made small (He et al. 2016, arXiv:1512.03385; Radford et al. 2021, section 2.4).

As in CLIP there is a stem of three 3 × 3 convolutions, and average pooling in front of every stride (Zhang 2019,
arXiv:1904.11486), which makes the gradient with respect to the pixels smooth. Unlike in CLIP the blocks are basic ones,
and the pooled output is the mean over positions: attention pooling costs more than it gives at these widths.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

# diffusers loads a class from a module only if the name of the class's base is in that module too.
from transformers import PreTrainedModel as PreTrainedModel
from transformers.activations import ACT2FN

from clip_guidance.towers.checks import MOST_LAYERS, check_activation, check_lists
from clip_guidance.towers.image import ImageConfig, ImageStates, ImageTower


class ResNetConfig(ImageConfig):
    """Configure a :class:`ResNetModel`.

    The other settings are those of :class:`~clip_guidance.towers.image.ImageConfig`.

    Args:
        hidden_sizes: Channels of each stage; the last one is ``hidden_size``.
        depths: Number of residual blocks in each stage.
        norm: "batch", or "group", with which an image's output does not depend on the other images of its batch.
        hidden_act: Activation behind each norm. "relu", as in CLIP, makes the gradient with respect to the pixels jump
            wherever a channel changes its sign, so that rounding can change a guided image; with a smooth one such as
            "gelu" it cannot.

    Raises:
        ValueError: A size is out of range, ``hidden_sizes`` and ``depths`` have different lengths, ``image_size`` is
            too small for the stages, ``norm`` is something else, or the activation is unknown.

    Example:
        >>> import clip_guidance as cg
        >>> cg.towers.ResNetConfig(image_size=64, hidden_sizes=[32, 64], depths=[1, 2]).hidden_size
        64
    """

    model_type = "clip_guidance_resnet"

    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    norm: str = "batch"
    hidden_act: str = "relu"

    def __post_init__(self, **kwargs: Any) -> None:
        check_lists(self, "hidden_sizes", least=2)  # the stem has half the channels of the first stage
        check_lists(self, "depths")
        self.hidden_size = self.hidden_sizes[-1]
        super().__post_init__(**kwargs)
        if len(self.hidden_sizes) != len(self.depths) or sum(self.depths) > MOST_LAYERS:
            sizes = f"hidden_sizes {self.hidden_sizes!s:.80}, depths {self.depths!s:.80}"
            raise ValueError(f"expected one depth per stage, {MOST_LAYERS} blocks at most, got {sizes}")
        if self.image_size < 2 ** len(self.hidden_sizes):
            least = f"at least {2 ** len(self.hidden_sizes)} pixels for {len(self.hidden_sizes)} stages"
            raise ValueError(f"image_size: expected {least}, each of which halves it, got {self.image_size}")
        if self.norm not in ("batch", "group"):
            raise ValueError(f'norm: expected "batch" or "group", got {self.norm!r:.60}')
        check_activation(self)
        widths = [self.hidden_sizes[0] // 2, *self.hidden_sizes]
        if self.norm == "group" and any(width % (norm_groups(width) or width + 1) for width in widths):
            raise ValueError(f"hidden_sizes: no groups of equal size for group norm in {widths!s:.80}")


def norm_groups(width: int) -> int:
    """Return the number of groups of a group norm of this width: at most 16, each of at least 4 channels."""
    return min(16, width // 4)


def conv_norm(
    config: ResNetConfig, inputs: int, outputs: int, kernel_size: int = 3, norm_weight: float = 1.0
) -> nn.Sequential:
    """Make a convolution of stride 1 that keeps the size, and the norm that follows it."""
    norm = nn.BatchNorm2d(outputs) if config.norm == "batch" else nn.GroupNorm(norm_groups(outputs), outputs)
    nn.init.constant_(norm.weight, norm_weight)
    conv = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, norm)


class Block(nn.Module):
    """Compute act(shortcut(x) + conv(act(conv(x)))), at half the size where ``stride`` is 2."""

    def __init__(self, config: ResNetConfig, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = conv_norm(config, inputs, outputs)
        self.conv2 = conv_norm(config, outputs, outputs, norm_weight=0.0)  # at first x + 0 (Goyal 2017, 5.1)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        changes = stride > 1 or inputs != outputs
        self.shortcut = conv_norm(config, inputs, outputs, kernel_size=1) if changes else nn.Identity()
        self.activation_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.pool(self.activation_fn(self.conv1(x))))
        return self.activation_fn(self.shortcut(self.pool(x)) + y)


class ResNet(nn.Module):
    """Compute the stem at half the size, the stages (all but the first halve it), and the mean."""

    def __init__(self, config: ResNetConfig):
        super().__init__()
        widths = list(config.hidden_sizes)
        stem = widths[0]
        self.stem = nn.Sequential(
            conv_norm(config, config.num_channels, stem // 2),
            ACT2FN[config.hidden_act],
            nn.AvgPool2d(2),
            conv_norm(config, stem // 2, stem // 2),
            ACT2FN[config.hidden_act],
            conv_norm(config, stem // 2, stem),
            ACT2FN[config.hidden_act],
        )
        self.stages = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(widths, config.depths, strict=True)):
            blocks = [Block(config, stem if i == 0 else widths[i - 1], width, stride=1 if i == 0 else 2)]
            blocks += [Block(config, width, width, stride=1) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, pixel_values: Tensor, attentions: list[Tensor] | None = None) -> ImageStates:
        x = self.stem(pixel_values)
        hidden_states = [x.flatten(2).transpose(1, 2)]
        for stage in self.stages:
            x = stage(x)
            hidden_states.append(x.flatten(2).transpose(1, 2))
        return ImageStates(tuple(hidden_states), hidden_states[-1], x.mean((2, 3)))

    def layer_groups(self) -> list[list[nn.Module]]:
        """Group the layers as :meth:`~clip_guidance.towers.image.ImageTower.layer_groups` says."""
        return [[self.stem], *([block] for stage in self.stages for block in cast(nn.Sequential, stage))]


class ResNetModel(ImageTower):
    """Encode images with CLIP's ResNet.

    Gradient checkpointing is not supported: a block that runs twice would count its batch twice in BatchNorm's running
    averages.

    Args:
        config: A :class:`ResNetConfig`.

    Example:
        >>> import torch
        >>> from clip_guidance.towers import ResNetConfig, ResNetModel
        >>> tower = ResNetModel(ResNetConfig(image_size=32, hidden_sizes=[16, 32], depths=[1, 1]))
        >>> tower(torch.rand(2, 3, 32, 32)).pooler_output.shape
        torch.Size([2, 32])
    """

    config_class = ResNetConfig

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.stem

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.vision_model.stem = value

    @staticmethod
    def make_vision_model(config: ResNetConfig) -> nn.Module:
        return ResNet(config)
