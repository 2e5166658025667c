"""The base of the image towers: pixels in, a sequence of states and one pooled vector per image out.

The outputs are those of ``transformers``' ``CLIPVisionModel`` or, with ``projection_dim``, of its
``CLIPVisionModelWithProjection``: IP-Adapter and other users of an ``image_encoder`` read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPVisionModelOutput

from clip_guidance.towers.checks import check_counts, check_norm
from clip_guidance.towers.layers import SelfInitialised, linear
from clip_guidance.towers.outputs import Wanted


class ImageConfig(PreTrainedConfig):
    """Hold the settings that every image tower has.

    Args:
        image_size: Side of the square input in pixels.
        num_channels: Channels of the input.
        hidden_size: Width D of the pooled state.
        projection_dim: Size of ``image_embeds``; None for a tower that ends with the pooled state.
        layer_norm_eps: Added to the variance in every layer norm.

    Raises:
        ValueError: A size is no whole number of at least 1.
    """

    image_size: int = 224
    num_channels: int = 3
    hidden_size: int = 768
    projection_dim: int | None = None
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_counts(self, "image_size", "num_channels", "hidden_size")
        if self.projection_dim is not None:
            check_counts(self, "projection_dim")
        check_norm(self)


@dataclass
class ImageStates:
    """What a ``vision_model`` returns.

    Attributes:
        hidden_states: Tensors (B, L, D_i), one per layer or stage.
        last_hidden_state: (B, L, D).
        pooler_output: (B, D).
    """

    hidden_states: tuple[Tensor, ...]
    last_hidden_state: Tensor
    pooler_output: Tensor


class ImageTower(SelfInitialised, PreTrainedModel):
    """Base of the image towers.

    Subclasses make ``vision_model``, which maps pixel_values to :class:`ImageStates`, and adds its attentions to a
    second argument where it has some.

    Args:
        config: The config of the subclass.
    """

    base_model_prefix = ""
    input_modalities = ("image",)
    main_input_name = "pixel_values"

    def __init__(self, config: ImageConfig):
        super().__init__(config)
        self.vision_model: Any = self.make_vision_model(config)
        self.visual_projection: nn.Linear | None = None
        if config.projection_dim is not None:
            self.visual_projection = linear(config.hidden_size, config.projection_dim, bias=False)
        self.post_init()

    @staticmethod
    def make_vision_model(config: Any) -> nn.Module:
        raise TypeError("ImageTower is abstract: use ViTModel or ResNetModel")

    def layer_groups(self) -> list[list[nn.Module]]:
        """Group the layers by depth: first the embeddings or the stem, then one group per block.

        What follows the last block, a norm or a projection, is in no group.
        """
        return self.vision_model.layer_groups()

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
    ) -> Any:
        """Encode a batch of images.

        Args:
            pixel_values: (B, 3, image_size, image_size), normalised as the CLIP's ``image_processor`` does.
            output_hidden_states: Whether to return ``hidden_states`` too; by default as the config says.
            return_dict: False returns a tuple; by default as the config says.
            output_attentions: Whether to return ``attentions`` too, (B, heads, L, L) of each layer, None from a tower
                without attention; by default as the config says.

        Returns:
            ``BaseModelOutputWithPooling``, or ``CLIPVisionModelOutput`` where the tower has a projection.

        Raises:
            ValueError: The images have another size.
        """
        expected = (self.config.num_channels, self.config.image_size, self.config.image_size)
        if tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(f"expected pixel_values of shape {('B', *expected)}, got {tuple(pixel_values.shape)}")
        wanted = Wanted.of(self.config, output_attentions, output_hidden_states, return_dict)
        attentions = wanted.collector()
        states = self.vision_model(pixel_values, attentions)
        optional = wanted.optional(states.hidden_states, attentions)
        if self.visual_projection is None:
            output: Any = BaseModelOutputWithPooling(states.last_hidden_state, states.pooler_output, *optional)
        else:
            embeds = self.visual_projection(states.pooler_output)
            output = CLIPVisionModelOutput(embeds, states.last_hidden_state, *optional)
        return output if wanted.return_dict else output.to_tuple()
