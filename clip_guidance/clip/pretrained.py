"""Load a CLIP by its name, whichever library it belongs to, or take a model that is in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from clip_guidance.clip.adapter import FAMILIES, ModuleAdapter, TransformersAdapter, is_dual_encoder
from clip_guidance.clip.config import CLIPConfig
from clip_guidance.clip.dual_encoder import DualEncoder
from clip_guidance.clip.function_parts import as_image_processor, as_tokenizer
from clip_guidance.clip.hub import OPEN_CLIP, FoundModel, HubOptions, find_model
from clip_guidance.clip.image_processor import ImageProcessor
from clip_guidance.clip.load import (
    LoadOptions,
    Parts,
    as_model_errors,
    check_loaded,
    check_options,
    find_parts,
    load_parts,
    load_transformers,
)
from clip_guidance.clip.open_clip.folder import load_open_clip

MODEL_TYPES = (CLIPConfig.model_type, "clip", OPEN_CLIP, *FAMILIES)


class Pretrained:
    """The part of :class:`~clip_guidance.clip.CLIP` that loads it and its like."""

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
                "hf-hub:owner/name"); saved by this package, a dual encoder of ``transformers``, or a model of
                open_clip. Weights must be safetensors.
            dtype: Precision of the weights, whatever they are stored in; "auto" for that.
            device: Where the model is put; by default where ``transformers`` loads it, the CPU.
            revision: Branch, tag or commit of a repository on the hub; by default its main branch.
            token: Access token for the hub; by default the one that ``hf auth login`` stored.
            cache_dir: Folder of downloads; by default the hub's.
            local_files_only: Whether only what was downloaded before is read.
            subfolder: Folder of the model inside the folder or repository.
            tokenizer: Used in place of the model's own, which may be absent then; or the name or folder of the model
                that it is taken from. Its ``model_max_length`` is lowered to the context where it is larger.
            image_processor: Used in place of the model's own; likewise.
            **others: ``torch_dtype``, ``attn_implementation``, ``device_map``, ``state_dict``, ``output_loading_info``
                and what ``AutoModel`` adds, as in ``transformers``.

        Returns:
            A ``CLIP`` where the model was saved by this package or is a ``clip`` of ``transformers`` or of open_clip,
            whose towers become ours; else an adapter around the library's own modules. With ``output_loading_info`` a
            tuple of it and of what was missing or left over, which is no error then.

        Raises:
            ModelError: There is no such model, its weights are pickled, it is not a CLIP, or it is damaged.
            TypeError: Another option is given, or one of another type.
            ValueError: There is no such dtype or device, or a model that is not on the hub has no such ``revision``.

        Warns:
            UserWarning: Weights of the checkpoint belong to no part of the model.
        """
        given = check_options(others, dtype, device)
        options = HubOptions(revision, token, cache_dir, local_files_only, subfolder)
        parts = find_parts(tokenizer, image_processor, options)
        model, info = cls._load(find_model(name_or_path, "clip", MODEL_TYPES, options), parts, options, given)
        model.name_or_path = str(name_or_path)
        return (model, info) if given.output_loading_info else model  # type: ignore[return-value]

    @classmethod
    def _load(
        cls, found: FoundModel, parts: Parts, options: HubOptions, given: LoadOptions
    ) -> tuple[DualEncoder, dict[str, Any]]:
        """Load a model by the library that it belongs to."""
        given.check(found)
        model: Any
        with as_model_errors(found.name):
            if found.model_type == CLIPConfig.model_type:
                name, own = given.own(found)
                model, info = super().from_pretrained(name, *load_parts(found, parts), **own)  # type: ignore[misc]
            elif found.model_type == OPEN_CLIP:
                model, info = load_open_clip(cls, found, parts, options, given.dtype)
            else:
                model, info = load_transformers(cls.from_transformers, found, parts, given.dtype)  # type: ignore[attr-defined]
            check_loaded(found.name, model, info, strict=not given.output_loading_info)
            if given.attn_implementation is not None:
                network: Any = model if isinstance(model, cls) else model.model
                network.set_attn_implementation(given.attn_implementation)
        return model.eval() if given.device is None else model.eval().to(given.device), info

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
