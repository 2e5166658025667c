"""ImageReward: BLIP reads an image and a text together, and an affine head turns that into one number.

    r = (w · h + b − μ) / s,    h = BLIP's first text token, which has attended to the whole text and to the image

(Xu et al. 2023, arXiv:2304.05977, section 3.2; BLIP: Li et al. 2022, arXiv:2201.12086). BLIP's own modules are those of
``transformers``; the weights have the names of the authors' release, as ports of it to safetensors keep them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel, PreTrainedTokenizerBase
from transformers.models.blip.modeling_blip_text import BlipTextModel

from clip_guidance._tensors import at_least_float32, sized_for_half
from clip_guidance.clip.fingerprint import digest
from clip_guidance.clip.image_processor import CLIP_MEAN, CLIP_STD, ImageProcessor
from clip_guidance.clip.tokenizer import one_at_a_time, warn_truncated
from clip_guidance.rewards.base import PromptReward, RewardError
from clip_guidance.rewards.heads import folded

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's outputs on the authors' training data
CONTEXT = 35  # tokens of a text, start and end included; what is longer is cut
HEAD_DIM = 64  # of every attention head of the vision transformers and of BERT: the weights do not say it

# Names of the vision transformer: those of the release, and those of transformers.
_RENAMED = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"^norm\.", "post_layernorm."),
)


class ImageReward(PromptReward):
    """Rate how well people would like an image for its prompt, as ImageReward does.

    Args:
        image_encoder: BLIP's vision transformer.
        text_encoder: BLIP's BERT with cross-attention to the image.
        weight: The head's vector (d,), of the width of ``text_encoder``.
        bias: The head's offset, scalar.
        tokenizer: BERT's, of lower-case English.
        prompts: As for :class:`~clip_guidance.rewards.base.PromptReward`.
    """

    tokenizer: PreTrainedTokenizerBase
    weight: Tensor
    bias: Tensor
    context_length = CONTEXT

    def __init__(
        self,
        image_encoder: BlipVisionModel,
        text_encoder: BlipTextModel,
        weight: Tensor,
        bias: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        prompts: str | Sequence[str] | None = None,
    ):
        super().__init__("imagereward", prompts)
        self.image_encoder, self.text_encoder, self.tokenizer = image_encoder, text_encoder, tokenizer
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())
        self.image_processor = ImageProcessor(image_encoder.config.image_size, CLIP_MEAN, CLIP_STD)

    @classmethod
    def from_weights(
        cls,
        weights: Mapping[str, Tensor],
        tokenizer: PreTrainedTokenizerBase,
        prompts: str | Sequence[str] | None = None,
    ) -> ImageReward:
        """Build the model from the tensors of a checkpoint; their shapes say how large it is.

        Args:
            weights: Tensors by the names of the authors' release, with or without "blip." before those of BLIP.
            tokenizer: BERT's.
            prompts: As for the class.

        Raises:
            RewardError: Tensors are missing or left over, or the tokenizer has more tokens than the model.
        """
        parts: dict[str, dict[str, Tensor]] = {"visual_encoder": {}, "text_encoder": {}, "mlp": {}}
        for name, tensor in weights.items():
            part, _, rest = name.removeprefix("blip.").partition(".")
            if part in parts and rest != "embeddings.position_ids":  # a constant that former versions saved
                parts[part][_renamed(rest) if part == "visual_encoder" else rest] = tensor
            elif part not in ("vision_proj", "text_proj", "text_encoder"):  # BLIP's other heads
                raise RewardError(f"ImageReward: weights that it does not have: {name}")
        images, texts, head = parts.values()
        image_encoder = BlipVisionModel(_vision_config(images))
        text_encoder = BlipTextModel(_text_config(texts, image_encoder.config.hidden_size), add_pooling_layer=False)
        _load(image_encoder, images)
        _load(text_encoder, texts)
        if len(tokenizer) > text_encoder.config.vocab_size:
            raise RewardError(
                f"ImageReward: the tokenizer has {len(tokenizer)} tokens, the model {text_encoder.config.vocab_size}"
            )
        weight, bias = folded(head, text_encoder.config.hidden_size, "ImageReward's head")
        return cls(image_encoder, text_encoder, weight, bias, tokenizer, prompts).eval()

    def look(self, pixel_values: Tensor) -> Tensor:
        def states(x: Tensor) -> Tensor:
            return at_least_float32(self.image_encoder(x.to(self.dtype)).last_hidden_state)

        return sized_for_half(states, pixel_values)

    def judge(self, seen: Tensor, prompts: Sequence[str]) -> Tensor:
        warn_truncated(self.tokenizer, list(dict.fromkeys(prompts)), CONTEXT)
        options = {"padding": True, "truncation": True, "max_length": CONTEXT, "return_tensors": "pt"}
        tokens = one_at_a_time(self.tokenizer, list(prompts), **options)

        def first_state(seen: Tensor) -> Tensor:
            read = self.text_encoder(
                input_ids=tokens.input_ids.to(seen.device),
                attention_mask=tokens.attention_mask.to(seen.device),
                encoder_hidden_states=seen.to(self.dtype),
                encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
            )
            return at_least_float32(read.last_hidden_state[:, 0])

        first = sized_for_half(first_state, seen)
        return (first @ self.weight.to(first) + self.bias.to(first) - MEAN) / STD

    def fingerprint(self) -> str:
        return digest([self.tokenizer.get_vocab(), self.image_processor.described()], self.state_dict())


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _need(weights: Mapping[str, Tensor], name: str, whose: str) -> Tensor:
    if name not in weights:
        raise RewardError(f"ImageReward: weights missing from its {whose}: {name}")
    return weights[name]


def _layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Count the layers by the numbers in the names of their weights."""
    return 1 + max((int(m[1]) for n in weights if (m := re.match(rf"{prefix}\.(\d+)\.", n))), default=-1)


def _vision_config(weights: Mapping[str, Tensor]) -> BlipVisionConfig:
    positions = _need(weights, "embeddings.position_embedding", "image tower")
    patches = _need(weights, "embeddings.patch_embedding.weight", "image tower")
    hidden = _need(weights, "encoder.layers.0.mlp.fc1.weight", "image tower")
    return BlipVisionConfig(
        hidden_size=positions.shape[-1],
        intermediate_size=hidden.shape[0],
        num_hidden_layers=_layers(weights, r"encoder\.layers"),
        num_attention_heads=max(1, positions.shape[-1] // HEAD_DIM),
        patch_size=patches.shape[-1],
        image_size=math.isqrt(positions.shape[1] - 1) * patches.shape[-1],
        layer_norm_eps=1e-6,
    )


def _text_config(weights: Mapping[str, Tensor], image_width: int) -> BlipTextConfig:
    words = _need(weights, "embeddings.word_embeddings.weight", "text tower")
    positions = _need(weights, "embeddings.position_embeddings.weight", "text tower")
    hidden = _need(weights, "encoder.layer.0.intermediate.dense.weight", "text tower")
    return BlipTextConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        encoder_hidden_size=image_width,
        intermediate_size=hidden.shape[0],
        num_hidden_layers=_layers(weights, r"encoder\.layer"),
        num_attention_heads=max(1, words.shape[1] // HEAD_DIM),
        max_position_embeddings=positions.shape[0],
        layer_norm_eps=1e-12,
        bos_token_id=None,  # these are for writing texts, which no reward does
        sep_token_id=None,
    )


def _load(tower: nn.Module, weights: Mapping[str, Tensor]) -> None:
    try:
        missing, left_over = tower.load_state_dict(dict(weights), strict=False)
    except RuntimeError as error:
        raise RewardError(f"ImageReward: weights of another shape: {str(error)[:200]}") from error
    if missing or left_over:
        what = [f"missing {', '.join(missing[:3])}"] * bool(missing)
        what += [f"left over {', '.join(left_over[:3])}"] * bool(left_over)
        raise RewardError(f"ImageReward: its {type(tower).__name__} does not fit: {'; '.join(what)}")
