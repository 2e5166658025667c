"""CLIP: an image tower and a text tower with a common space of embeddings (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers import CLIPModel as TransformersCLIP

from clip_guidance._tensors import check_device, unit_vectors
from clip_guidance.clip.adapter import FAMILIES, ModuleAdapter, TransformersAdapter, is_dual_encoder
from clip_guidance.clip.config import CLIPConfig, tower_class
from clip_guidance.clip.convert import convert_transformers
from clip_guidance.clip.dual_encoder import DualEncoder
from clip_guidance.clip.fingerprint import architecture
from clip_guidance.clip.function_parts import as_image_processor, as_tokenizer
from clip_guidance.clip.hub import FoundModel, HubOptions, find_model
from clip_guidance.clip.image_processor import ImageProcessor
from clip_guidance.clip.load import Parts, as_model_errors, check_loaded, check_options, find_parts, load_parts
from clip_guidance.clip.output import CLIPOutput as CLIPOutput
from clip_guidance.loss.contrastive import MAX_LOGIT_SCALE, contrastive_loss, similarity_logits
from clip_guidance.towers import ImageTower, TextTower
from clip_guidance.towers.layers import SelfInitialised, linear


class CLIP(SelfInitialised, DualEncoder, PreTrainedModel):
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
    ) -> CLIPOutput:
        """Embed images and texts, and compare every image with every text.

        Args:
            input_ids: Int64 (M, L).
            pixel_values: (N, 3, S, S), normalised as ``image_processor`` does.
            attention_mask: (M, L), 1 where there is a token; by default where the id is not the padding's.
            groups: As in :func:`~clip_guidance.loss.contrastive_loss`; used only with ``return_loss``.
            return_loss: Whether to compute the contrastive loss of the pairs, M = N, in place of the logits.
        """
        image_embeds = self.image_embeds(pixel_values)
        text_embeds = self.text_embeds(input_ids, attention_mask)
        if return_loss:
            loss = contrastive_loss(image_embeds, text_embeds, self.logit_scale, groups)
            return CLIPOutput(loss, None, image_embeds, text_embeds)
        logits = similarity_logits(image_embeds, text_embeds, self.logit_scale)
        return CLIPOutput(None, logits, image_embeds, text_embeds)

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
    def from_pretrained(
        cls,
        name_or_path: str | Path = "emoji",
        dtype: torch.dtype | str = torch.float32,
        device: str | torch.device | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        subfolder: str = "",
        tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
        image_processor: ImageProcessor | str | Path | None = None,
        **others: Any,
    ) -> DualEncoder:
        """Load a CLIP, ready for inference.

        Args:
            name_or_path: A packaged model ("emoji", "emoji-judge"), a folder (or "local-dir:folder"), or a hub id (or
                "hf-hub:owner/name"); saved by this package, or a dual encoder of ``transformers``. Weights must be
                safetensors.
            dtype: Precision of the weights, whatever they are stored in; "auto" for that.
            device: Where the model is put; by default where ``transformers`` loads it, the CPU.
            revision: Branch, tag or commit of a repository on the hub; by default its main branch.
            token: Access token for the hub; by default the one that ``hf auth login`` stored.
            cache_dir: Folder of downloads; by default the hub's.
            local_files_only: Whether only what was downloaded before is read.
            subfolder: Folder of the model inside the folder or repository.
            tokenizer: Used in place of the model's own, which may be absent then; or the name or folder of the model
                that it is taken from. Its ``model_max_length`` is lowered to the context where it is larger.
            image_processor: Used in place of the model's own, which may be absent then; or the name or folder of the
                model that it is taken from.
            **others: ``torch_dtype`` stands for ``dtype``. What ``AutoModel`` adds is taken too.

        Returns:
            A :class:`DualEncoder`: a ``CLIP`` where the model was saved by this package or is a ``clip`` of
            ``transformers``, whose towers become ours; else an adapter around the library's own modules.

        Raises:
            ModelError: There is no such model, its weights are pickled, it is not a CLIP, or it is damaged.
            TypeError: Another option is given, or one of another type.
            ValueError: There is no such dtype or device, or a model that is not on the hub has no such ``revision``.

        Warns:
            UserWarning: Weights of the checkpoint belong to no part of the model.
        """
        dtype, config = check_options(others, dtype)
        device = None if device is None else check_device(device)
        options = HubOptions(revision, token, cache_dir, local_files_only, subfolder)
        parts = find_parts(tokenizer, image_processor, options)
        found = find_model(name_or_path, "clip", (CLIPConfig.model_type, "clip", *FAMILIES), options)
        with as_model_errors(found.name):
            model = cls._load(found, parts, config, dtype)
        model.name_or_path = str(name_or_path)
        return model.eval() if device is None else model.eval().to(device)

    @classmethod
    def _load(cls, found: FoundModel, parts: Parts, config: CLIPConfig | None, dtype: torch.dtype | str) -> DualEncoder:
        """Load a model that was found, by the class that its type asks for."""
        weights = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True, **found.options}
        tokenizer, processor = load_parts(found, parts)
        model: DualEncoder
        if found.model_type == CLIPConfig.model_type:
            model, info = super().from_pretrained(found.path, tokenizer, processor, config=config, **weights)
        elif found.model_type == "clip":
            source, info = TransformersCLIP.from_pretrained(found.path, **weights)
            model = cls.from_transformers(source, tokenizer, processor)
        else:
            source, info = AutoModel.from_pretrained(found.path, trust_remote_code=False, **weights)
            model = TransformersAdapter(source, tokenizer, processor, found.name)
        check_loaded(found.name, model, info)
        return model

    @staticmethod
    def wrap(model: Any, tokenizer: Any, preprocess: Any, name: str = "") -> DualEncoder:
        """Take a model of another library that is in memory; the weights are shared with it.

        Args:
            model: A dual encoder of ``transformers``, or any object with ``encode_text`` (token ids to vectors),
                ``encode_image`` and ``logit_scale``, the log of the inverse temperature, such as a model of open_clip;
                ``logit_bias`` counts where it has one.
            tokenizer: A tokenizer of ``transformers``, whose ``model_max_length`` is the context; or a function from a
                list of texts to token ids (n, L), as ``open_clip.get_tokenizer`` returns.
            preprocess: An :class:`~clip_guidance.clip.image_processor.ImageProcessor`, an image processor of
                ``transformers``, or the ``Compose`` of torchvision that open_clip returns. Any other function from a
                PIL image to a tensor (3, S, S) does for judging: steering needs one whose steps can be read.
            name: Name of the model, for records and messages.

        Returns:
            An adapter, which is taken wherever a CLIP is.

        Raises:
            TypeError: A part is something else, or the model lacks one of the three.

        Example:
            >>> import clip_guidance as cg
            >>> from clip_guidance.clip.image_processor import ImageProcessor
            >>> from transformers import CLIPConfig, CLIPModel
            >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
            >>> text, vision = {**sizes, "max_position_embeddings": 32}, {**sizes, "image_size": 64}
            >>> model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision))
            >>> tokenizer = cg.CLIP.from_pretrained("emoji").tokenizer
            >>> clip = cg.CLIP.wrap(model, tokenizer, ImageProcessor(64))
            >>> clip.encode_text("a red apple").shape
            torch.Size([1, 512])
        """
        adapter = TransformersAdapter if is_dual_encoder(model) else ModuleAdapter
        return adapter(model, as_tokenizer(tokenizer), as_image_processor(preprocess), name)

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
