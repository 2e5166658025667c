"""Write a CLIP as a folder of another library, with equal embeddings; ``CLIP.from_pretrained`` reads both back."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from transformers import CLIPModel, PreTrainedTokenizerBase

from clip_guidance._files import write_atomically
from clip_guidance.clip.convert import as_transformers
from clip_guidance.clip.hub import OPEN_CLIP_CONFIG
from clip_guidance.clip.model import CLIP
from clip_guidance.clip.open_clip.config import describe_config
from clip_guidance.clip.open_clip.folder import WEIGHTS
from clip_guidance.clip.open_clip.preprocessing import describe_preprocessing
from clip_guidance.clip.open_clip.weights import as_open_clip


def to_transformers(clip: CLIP) -> CLIPModel:
    """Copy a CLIP into a ``transformers.CLIPModel`` with equal outputs.

    Args:
        clip: A CLIP of a ViT, with linear patches and pooled at its class token, and a causal text transformer.

    Returns:
        The model, on the device and in the precision of ``clip``, in evaluation mode.

    Raises:
        ValueError: The CLIP has other towers, or its end token is 2.

    Example:
        >>> import clip_guidance as cg
        >>> from clip_guidance.clip.export import to_transformers
        >>> try:
        ...     to_transformers(cg.CLIP.from_pretrained("emoji"))
        ... except ValueError as error:
        ...     print(str(error).partition(":")[0])
        transformers has no CLIP with a convolutional stem (stem_widths [24, 48, 96, 192])
    """
    config, weights = as_transformers(clip.config, clip.state_dict())
    model = CLIPModel(config)
    model.load_state_dict(weights)
    return model.to(clip.device, clip.dtype).eval()


def save_transformers(clip: CLIP, folder: str | Path) -> None:
    """Save a CLIP as the folder of a ``transformers.CLIPModel``.

    It holds config.json, model.safetensors, the tokenizer and preprocessor_config.json. ``transformers`` rounds half a
    pixel at the start of the crop down, whatever ``round_crop`` says.

    Args:
        clip: The CLIP, as for :func:`to_transformers`.
        folder: Folder, created where it does not exist.

    Raises:
        ValueError: As for :func:`to_transformers`; or the CLIP has no tokenizer, or its preprocessing pads.
        OSError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> import clip_guidance as cg
        >>> from clip_guidance.clip.export import save_transformers
        >>> from clip_guidance.towers import TransformerTextConfig, ViTConfig
        >>> text = TransformerTextConfig(vocab_size=3016, num_hidden_layers=1)
        >>> config = cg.CLIPConfig(text_config=text, vision_config=ViTConfig(num_hidden_layers=1))
        >>> folder = tempfile.mkdtemp()
        >>> save_transformers(cg.CLIP(config, cg.CLIP.from_pretrained("emoji").tokenizer), folder)
        >>> type(cg.CLIP.from_pretrained(folder)).__name__
        'CLIP'
    """
    model, tokenizer = to_transformers(clip), _tokenizer_of(clip, "transformers")
    clip.image_processor.save_pretrained(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_open_clip(clip: CLIP, folder: str | Path, repository: str | None = None) -> None:
    """Save a CLIP as a folder of open_clip 3.1 or later, which loads it as "local-dir:" and the folder.

    It holds open_clip_config.json, open_clip_model.safetensors and the tokenizer. open_clip rounds half a pixel at the
    start of the crop to the nearest even number, whatever ``round_crop`` says.

    Args:
        clip: The CLIP, as for :func:`to_transformers`, with "gelu" or "quick_gelu" in both towers.
        folder: Folder, created where it does not exist.
        repository: The repository to which the folder will be uploaded, as "owner/name": open_clip reads the tokenizer
            of a model on the hub from the repository that its config names. By default the name of the folder, which
            serves on disk alone.

    Raises:
        ValueError: open_clip has no equal CLIP or preprocessing, or the CLIP has no tokenizer.
        OSError: The folder cannot be written.
    """
    folder = Path(folder)
    model_cfg, preprocess_cfg = describe_config(clip.config), describe_preprocessing(clip.image_processor)
    tokenizer = _tokenizer_of(clip, "open_clip")
    model_cfg["text_cfg"]["hf_tokenizer_name"] = repository or folder.resolve().name
    if tokenizer.pad_token_id is not None:
        model_cfg["text_cfg"]["pad_id"] = tokenizer.pad_token_id  # open_clip checks that it is the tokenizer's
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in as_open_clip(clip.state_dict()).items()}
    with write_atomically(folder / WEIGHTS[0]) as partial:
        save_file(weights, partial, metadata={"format": "pt"})
    described = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    with write_atomically(folder / OPEN_CLIP_CONFIG) as partial:
        partial.write_text(json.dumps(described, indent=2), encoding="utf-8")
    tokenizer.save_pretrained(folder)


def _tokenizer_of(clip: CLIP, library: str) -> PreTrainedTokenizerBase:
    """Return a CLIP's tokenizer, without which others would read its texts by another vocabulary."""
    if clip.tokenizer is None:
        raise ValueError(f"a folder of {library} has a tokenizer, and this CLIP has none: CLIP(config, tokenizer)")
    return clip.tokenizer
