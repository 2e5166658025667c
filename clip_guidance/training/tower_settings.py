"""The towers of a fresh CLIP as settings of a program, the base of the program's dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from clip_guidance.towers import IMAGE_TOWERS, TEXT_TOWERS


@dataclass(frozen=True, kw_only=True)
class TowerSettings:
    """Any image tower with any text tower; the defaults are small ones for 64x64 images."""

    image_tower: str = "vit"  # "vit" or "resnet"
    text_tower: str = "transformer"  # "transformer" or "cbow", a bag of words
    image_size: int = 64  # side of the square images, in pixels
    patch_size: int = 16  # of the ViT: side of a patch, in pixels
    stem_widths: list[int] = field(default_factory=list)  # of the ViT: channels of residual stages below it
    pooling: str = "class"  # of the ViT: the "class" token, or the "mean" of all tokens
    image_width: int = 192  # of the ViT: channels
    image_layers: int = 6  # of the ViT: blocks
    resnet_widths: list[int] = field(default_factory=lambda: [32, 64, 128, 192])  # of the ResNet: channels by stage
    resnet_depths: list[int] = field(default_factory=lambda: [1, 1, 2, 2])  # of the ResNet: blocks by stage
    conv_act: str = "relu"  # of the ViT's stem and of the ResNet; with "gelu" rounding makes no guided image jump
    text_width: int = 192  # channels of the text tower
    text_layers: int = 3  # blocks of the text transformer
    vocab_size: int = 3072  # tokens of the vocabulary that is learnt from the captions
    context_length: int = 32  # longest text in tokens, start and end included
    projection_dim: int = 128  # of the embeddings that images and texts share

    def text_config(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
        """Make the config of the text tower over this vocabulary."""
        options = dict(
            vocab_size=len(tokenizer),
            hidden_size=self.text_width,
            intermediate_size=4 * self.text_width,
            max_position_embeddings=self.context_length,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        if self.text_tower == "transformer":
            options |= dict(num_hidden_layers=self.text_layers, num_attention_heads=_heads(self.text_width))
        return TEXT_TOWERS[self.text_tower][0](**options)

    def image_config(self) -> PreTrainedConfig:
        """Make the config of the image tower."""
        options: dict[str, object]
        if self.image_tower == "vit":
            options = dict(
                hidden_size=self.image_width,
                intermediate_size=4 * self.image_width,
                num_hidden_layers=self.image_layers,
                num_attention_heads=_heads(self.image_width),
                patch_size=self.patch_size,
                stem_widths=self.stem_widths or None,
                stem_act=self.conv_act,
                pooling=self.pooling,
                hidden_act="gelu",
            )
        else:
            options = dict(hidden_sizes=self.resnet_widths, depths=self.resnet_depths, hidden_act=self.conv_act)
        return IMAGE_TOWERS[self.image_tower][0](image_size=self.image_size, **options)


def _heads(width: int) -> int:
    """Return the largest number of heads of at least 32 channels each that divides the width; at least one head."""
    return next(heads for heads in range(max(1, width // 32), 0, -1) if width % heads == 0)
