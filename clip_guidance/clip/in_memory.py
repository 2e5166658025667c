"""Take whatever is a CLIP: ours, an adapted one, one with a cache, or a dual encoder of transformers in memory."""

from __future__ import annotations

from typing import Any

from clip_guidance.clip.adapter import TransformersAdapter, is_dual_encoder
from clip_guidance.clip.dual_encoder import DualEncoder
from clip_guidance.clip.embed_cache import CachedCLIP
from clip_guidance.clip.hub import HubOptions, ModelError, find_place
from clip_guidance.clip.preprocessing import load_image_processor
from clip_guidance.clip.tokenizer import load_tokenizer


def as_clip(clip: Any) -> DualEncoder:
    """Return a CLIP; a dual encoder of transformers is adapted, and shares its weights.

    Args:
        clip: A :class:`DualEncoder`, or a model of transformers with ``get_text_features`` and
            ``get_image_features``, whose tokenizer and preprocessing are read from where it was loaded.

    Raises:
        TypeError: It is something else.
        ModelError: The tokenizer or the preprocessing are not where the model was loaded from.
    """
    if isinstance(clip, DualEncoder | CachedCLIP):
        return clip  # type: ignore[return-value]  # a CachedCLIP has all of a CLIP's attributes
    if not is_dual_encoder(clip):
        given = f" {clip!r:.60}" if isinstance(clip, str) else ""
        raise TypeError(
            f"clip must be a CLIP, got {type(clip).__name__}{given}: CLIP.from_pretrained(name) loads one, and "
            "CLIP.wrap(model, tokenizer, preprocess) takes a model of another library"
        )
    name = str(getattr(clip, "name_or_path", ""))
    advice = "CLIP.wrap(model, tokenizer, image_processor) takes them from you"
    if not name:
        raise ModelError(f"a {type(clip).__name__} in memory has no tokenizer and no preprocessing: {advice}")
    try:
        place = find_place(name, "model", "config.json", HubOptions())
        tokenizer, processor = load_tokenizer(place), load_image_processor(place)
        if tokenizer is None:
            raise ModelError("no vocabulary")
    except ModelError as error:
        raise ModelError(f"{name}: {str(error).removeprefix(f'{name}: '):.150}; {advice}") from error
    return TransformersAdapter(clip, tokenizer, processor, name)
