"""CLIP: an image tower and a text tower with a common space of embeddings (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel as TransformersCLIP
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from clip_guidance._tensors import unit_vectors
from clip_guidance.clip.config import CLIPConfig, tower_class
from clip_guidance.clip.convert import convert_transformers
from clip_guidance.clip.dual_encoder import DualEncoder
from clip_guidance.clip.fingerprint import architecture
from clip_guidance.clip.image_processor import ImageProcessor
from clip_guidance.clip.output import CLIPOutput as CLIPOutput
from clip_guidance.clip.pretrained import Pretrained
from clip_guidance.loss.contrastive import MAX_LOGIT_SCALE, contrastive_loss, similarity_logits
from clip_guidance.towers import ImageTower, TextTower
from clip_guidance.towers.layers import SelfInitialised, linear


class CLIP(SelfInitialised, Pretrained, DualEncoder, PreTrainedModel):
    """Embed images and texts as unit vectors in one space, with any two towers.

    Load one with :meth:`from_pretrained`, or make an untrained one from a config.

    Args:
        config: A :class:`CLIPConfig`.
        tokenizer: Needed by everything that takes texts; its ``model_max_length`` is the context, and its
            ``eos_token_id`` becomes the config's.
        image_processor: Needed by everything that takes images; by default made for the image tower's size, with mean
            and standard deviation 0.5.

    Attributes:
        text_encoder: The text tower, a drop-in ``text_encoder`` of Stable Diffusion 1 and 2.
        image_encoder: The image tower.
        logit_scale: Log of the inverse temperature, one element.

    Example:
        >>> import clip_guidance as cg
        >>> from PIL import Image
        >>> clip = cg.CLIP.from_pretrained("emoji")
        >>> texts = clip.encode_text(["a red apple", "a rocket"])
        >>> image = clip.encode_image(Image.new("RGB", (64, 64), "red"))
        >>> texts.shape, (image @ texts.T).shape
        (torch.Size([2, 128]), torch.Size([1, 2]))
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
        if tokenizer is not None and tokenizer.eos_token_id is not None:
            text_config.eos_token_id = tokenizer.eos_token_id  # where a text is pooled; the config's may be wrong
        self.text_encoder: TextTower = tower_class(text_config)(text_config)
        self.image_encoder: ImageTower = tower_class(vision_config)(vision_config)
        self.text_projection = linear(text_config.hidden_size, config.projection_dim, bias=False)
        self.visual_projection = linear(vision_config.hidden_size, config.projection_dim, bias=False)
        # One element rather than a scalar: FSDP2 cannot shard a parameter without dimensions.
        self.logit_scale = nn.Parameter(torch.full((1,), float(config.logit_scale_init_value)))
        self.tokenizer = tokenizer
        self.image_processor = image_processor or ImageProcessor(vision_config.image_size)
        self.post_init()

    def text_embeds(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Map token ids int64 (n, L) to unit vectors (n, d), differentiably.

        The vectors are normalised in at least float32, whatever the precision of the weights.
        """
        pooled = self.text_encoder(input_ids, attention_mask).pooler_output
        return unit_vectors(self.text_projection(pooled))

    def image_embeds(self, pixel_values: Tensor) -> Tensor:
        """Map normalised images (n, 3, S, S) to unit vectors (n, d), as :meth:`text_embeds` does."""
        return unit_vectors(self.project_states(self.image_states(pixel_values)))

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        groups: Tensor | None = None,
        return_loss: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Embed images and texts, and compare every image with every text.

        Args:
            input_ids: Int64 (M, L).
            pixel_values: (N, 3, S, S), normalised as ``image_processor`` does.
            attention_mask: (M, L), 1 where there is a token; by default where the id is not the padding's.
            groups: As in :func:`~clip_guidance.loss.contrastive_loss`; used only with ``return_loss``.
            return_loss: Whether to compute the contrastive loss of the pairs, M = N, in place of the logits.
            output_attentions: Whether to return the towers' outputs with their attentions; by default as the config of
                each says.
            output_hidden_states: Whether to return the towers' outputs with their hidden states; likewise.
            return_dict: False returns a tuple; by default as the config says.

        Returns:
            A :class:`CLIPOutput`, or a tuple of what it holds.
        """
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        vision = self.image_encoder(pixel_values, return_dict=True, **asked)
        text = self.text_encoder(input_ids, attention_mask, return_dict=True, **asked)
        image_embeds = unit_vectors(self.project_states(vision.pooler_output))
        text_embeds = unit_vectors(self.text_projection(text.pooler_output))
        loss = logits = None
        if return_loss:
            loss = contrastive_loss(image_embeds, text_embeds, self.logit_scale, groups)
        else:
            logits = similarity_logits(image_embeds, text_embeds, self.logit_scale)
        inner = [tower if tower.hidden_states or tower.attentions else None for tower in (text, vision)]
        output = CLIPOutput(loss, logits, image_embeds, text_embeds, *inner)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings of the text tower."""
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the text tower."""
        self.text_encoder.set_input_embeddings(value)

    def image_states(self, pixel_values: Tensor) -> Tensor:
        return self.image_encoder(pixel_values).pooler_output

    def project_states(self, states: Tensor) -> Tensor:
        return self.visual_projection(states)

    @property
    def projection_dim(self) -> int:
        """Size d of the embeddings."""
        return self.config.projection_dim

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the text tower embeds."""
        return self.config.text_config.vocab_size

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Clamp the learned factor exp(logit_scale) to at most 100, after each step of training."""
        self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def _architecture(self) -> Any:
        config = self.config.to_dict()
        return [architecture(config[part]) for part in ("text_config", "vision_config")]

    def text_encoder_with_projection(self) -> TextTower:
        """Return the text tower with its projection; it shares its weights with this CLIP.

        The second ``text_encoder`` of SDXL and both CLIP encoders of Stable Diffusion 3 are such towers.
        """
        tower = self.text_encoder
        config = type(tower.config)(**{**tower.config.to_dict(), "projection_dim": self.config.projection_dim})
        config._attn_implementation = tower.config._attn_implementation
        projecting = type(tower)(config)
        projecting.text_model, projecting.text_projection = tower.text_model, self.text_projection
        return projecting.to(self.device, self.dtype).eval()

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save config.json, model.safetensors, the tokenizer and preprocessor_config.json.

        Args:
            save_directory: Folder, created where it does not exist.
            **kwargs: Passed to ``PreTrainedModel.save_pretrained``.
        """
        super().save_pretrained(save_directory, **kwargs)
        self.image_processor.save_pretrained(save_directory)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)

    @classmethod
    def from_transformers(
        cls,
        source: TransformersCLIP,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_processor: ImageProcessor | None = None,
    ) -> CLIP:
        """Convert a ``transformers.CLIPModel`` that is in memory; the embeddings are the same.

        Args:
            source: The model; its weights are copied.
            tokenizer: Needed by everything that takes texts.
            image_processor: Needed by everything that takes images; by default made for the image tower's size, with
                mean and standard deviation 0.5.

        Returns:
            A CLIP in the precision of ``source``, in training mode.
        """
        config, weights = convert_transformers(source)
        model = cls(config, tokenizer, image_processor).to(source.dtype)
        model.load_state_dict(weights)
        return model
