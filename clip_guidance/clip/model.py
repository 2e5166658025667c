"""CLIP: an image tower and a text tower that meet in one space (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers import CLIPModel as TransformersCLIP
from transformers.utils import ModelOutput

from clip_guidance.clip.config import CLIPConfig
from clip_guidance.clip.hub import FoundModel, ModelError, find_model
from clip_guidance.clip.image_processor import ImageProcessor
from clip_guidance.clip.tokenizer import tokenize
from clip_guidance.images.load import ImageSource, as_list, load_image
from clip_guidance.loss.contrastive import MAX_LOGIT_SCALE, contrastive_loss, similarity_logits
from clip_guidance.towers import IMAGE_TOWERS, TEXT_TOWERS, ImageTower, TextTower
from clip_guidance.towers.layers import SelfInitialised, linear

_TOWERS = ("text_config", "vision_config")
_FROM_AUTO = {"config", "adapter_kwargs", "trust_remote_code", "revision"}
_NOT_ARCHITECTURE = ("dtype", "_name_or_path", "transformers_version", "architectures")


@dataclass
class CLIPOutput(ModelOutput):
    """What :meth:`CLIP.forward` returns.

    Attributes:
        loss: scalar, where ``return_loss``.
        logits_per_image: (N, M), exp(logit_scale) · cos, where not ``return_loss``.
        image_embeds: (N, d) unit vectors.
        text_embeds: (M, d) unit vectors.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None


class CLIP(SelfInitialised, PreTrainedModel):
    """Any image tower with any text tower.

    Args:
        config: a :class:`CLIPConfig`.
        tokenizer: needed by everything that takes texts; its ``model_max_length`` is the context.
        image_processor: needed by everything that takes images; made from the config where not given.
    """

    config_class = CLIPConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True  # of the transformer blocks in its towers

    def __init__(
        self,
        config: CLIPConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_processor: ImageProcessor | None = None,
    ):
        super().__init__(config)
        text_config, vision_config = config.text_config, config.vision_config
        self.text_encoder: TextTower = _tower_class(text_config)(text_config)
        self.image_encoder: ImageTower = _tower_class(vision_config)(vision_config)
        self.text_projection = linear(text_config.hidden_size, config.projection_dim, bias=False)
        self.visual_projection = linear(vision_config.hidden_size, config.projection_dim, bias=False)
        # one element, not none: FSDP2 cannot shard a parameter without dimensions
        self.logit_scale = nn.Parameter(torch.full((1,), float(config.logit_scale_init_value)))
        self.tokenizer = tokenizer
        self.image_processor = image_processor or ImageProcessor(vision_config.image_size)
        self.post_init()

    def text_embeds(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Token ids int64 (n, L) to unit vectors (n, d), differentiable, normalised in at least float32."""
        pooled = self.text_encoder(input_ids, attention_mask).pooler_output
        return _unit(self.text_projection(pooled))

    def image_embeds(self, pixel_values: Tensor) -> Tensor:
        """Normalised images (n, 3, S, S) to unit vectors (n, d), differentiable."""
        pooled = self.image_encoder(pixel_values).pooler_output
        return _unit(self.visual_projection(pooled))

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        groups: Tensor | None = None,
        return_loss: bool = False,
    ) -> CLIPOutput:
        """Embed a batch of pairs; with ``return_loss`` compute their :func:`~clip_guidance.loss.contrastive_loss`."""
        image_embeds = self.image_embeds(pixel_values)
        text_embeds = self.text_embeds(input_ids, attention_mask)
        if return_loss:
            loss = contrastive_loss(image_embeds, text_embeds, self.logit_scale, groups)
            return CLIPOutput(loss, None, image_embeds, text_embeds)
        logits = similarity_logits(image_embeds, text_embeds, self.logit_scale)
        return CLIPOutput(None, logits, image_embeds, text_embeds)

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Holds the learned factor at or below 100; called after each step of training."""
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    @torch.no_grad()
    def encode_text(self, texts: str | Sequence[str], batch_size: int = 256) -> Tensor:
        """Unit vectors of texts.

        Args:
            texts: one or several, none of them empty.
            batch_size: texts a pass.

        Returns:
            float32 (n, d), on the model's device.

        Raises:
            ValueError: there is no text, one is empty or no string, or the CLIP has no tokenizer.

        Warns:
            PromptTruncatedWarning: a text is longer than the context; says what was cut.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("expected at least one text, got an empty list")
        for index, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"text {index}: expected a prompt with at least one word, got {text!r}")
        if self.tokenizer is None:
            raise ValueError("this CLIP was made without a tokenizer: CLIP(config, tokenizer) or from_pretrained")
        parts = []
        for part in _parts(texts, batch_size):
            input_ids = tokenize(self.tokenizer, part, padding="longest")  # padding changes nothing, and costs
            parts.append(self.text_embeds(input_ids.to(self.device)))
        return torch.cat(parts)

    @torch.no_grad()
    def encode_image(self, images: ImageSource | Iterable[ImageSource], batch_size: int = 64) -> Tensor:
        """Unit vectors of images.

        Args:
            images: one or several of: PIL image, path, bytes, array (H, W, 3), tensor (3, H, W) or (n, 3, H, W) with
                values in [0, 1] or uint8.
            batch_size: images a pass; only that many are decoded at a time.

        Returns:
            float32 (n, d), on the model's device.

        Raises:
            ImageError: an image cannot be read; names it.
        """
        parts = []
        for part in _parts(as_list(images), batch_size):
            pixel_values = torch.stack([self.preprocess(image) for image in part])
            parts.append(self.image_embeds(pixel_values.to(self.device, self.dtype)))
        return torch.cat(parts)

    def preprocess(self, image: ImageSource) -> Tensor:
        """One image to what the image tower reads, (3, S, S)."""
        return self.image_processor(load_image(image))

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any weight, the towers, the vocabulary or the preprocessing."""
        config = self.config.to_dict()
        towers = [{k: v for k, v in config[part].items() if k not in _NOT_ARCHITECTURE} for part in _TOWERS]
        vocabulary = self.tokenizer.get_vocab() if self.tokenizer is not None else {}
        described = json.dumps([towers, asdict(self.image_processor), vocabulary], sort_keys=True, default=str)
        digest = hashlib.sha256(described.encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def text_encoder_with_projection(self) -> TextTower:
        """The text tower with its projection, sharing weights: the second ``text_encoder`` of SDXL, those of SD3."""
        tower = self.text_encoder
        config = type(tower.config)(**{**tower.config.to_dict(), "projection_dim": self.config.projection_dim})
        projecting = type(tower)(config)
        projecting.text_model, projecting.text_projection = tower.text_model, self.text_projection
        return projecting.to(self.device, self.dtype).eval()

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Writes config.json, model.safetensors, the tokenizer and preprocessor_config.json."""
        super().save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path = "emoji", dtype: torch.dtype = torch.float32, **auto: Any
    ) -> CLIP:
        """Loads a CLIP, ready for inference.

        Args:
            name_or_path: a packaged default ("emoji", "emoji-judge"), a folder, or a hub id; saved by this package or
                a ``transformers`` CLIP. Weights must be safetensors.
            dtype: precision of the weights, whatever they are stored in.
            **auto: what ``AutoModel`` passes on of its own; all of it is in the folder too.

        Raises:
            ModelError: there is no such model, it holds pickled weights only, it is no CLIP, or it is damaged.
        """
        if unknown := auto.keys() - _FROM_AUTO:
            raise TypeError(f"CLIP.from_pretrained: expected name_or_path and dtype, got also {', '.join(unknown)}")
        found = find_model(name_or_path, "clip", model_types=(CLIPConfig.model_type, "clip"))
        try:
            tokenizer = found.tokenizer()
            model = cls._load(found, tokenizer, found.image_processor(), dtype)
        except ModelError:
            raise
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{name_or_path}: cannot be loaded: {error}") from error
        tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)
        model.name_or_path = str(name_or_path)
        return model.eval()

    @classmethod
    def _load(
        cls, found: FoundModel, tokenizer: PreTrainedTokenizerBase, processor: ImageProcessor, dtype: torch.dtype
    ) -> CLIP:
        options = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
        if found.model_type == CLIPConfig.model_type:
            model, info = super().from_pretrained(found.path, tokenizer, processor, **options)
        else:
            source, info = TransformersCLIP.from_pretrained(found.path, **options)
            model = None
        if missing := sorted(info["missing_keys"]):
            raise ModelError(f"{found.name}: weights missing from it: {', '.join(missing[:5])}")
        if model is None:
            from clip_guidance.clip.convert import from_transformers

            model = from_transformers(source, tokenizer, processor)
        return model


def _tower_class(config: PreTrainedConfig) -> Any:
    for config_class, model_class in (*TEXT_TOWERS.values(), *IMAGE_TOWERS.values()):
        if type(config) is config_class:
            return model_class
    raise ValueError(f"no tower for a config of type {type(config).__name__}")


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=-1)


def _parts(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


AutoConfig.register(CLIPConfig.model_type, CLIPConfig, exist_ok=True)
AutoModel.register(CLIPConfig, CLIP, exist_ok=True)
