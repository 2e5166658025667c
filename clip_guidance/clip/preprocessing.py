"""Load a model's preprocessing, whichever of the two kinds it is."""

from __future__ import annotations

from typing import TypeAlias

from clip_guidance._files import read_json
from clip_guidance.clip.hub import ModelError, Place
from clip_guidance.clip.image_processor import ImageProcessor
from clip_guidance.clip.naflex import NaFlexProcessor, read_naflex

Preprocessing: TypeAlias = ImageProcessor | NaFlexProcessor


def load_image_processor(place: Place) -> Preprocessing:
    """Load a model's preprocessing, from the file that any version of transformers writes.

    Raises:
        ModelError: There is no such file, or it asks for what neither kind does.
    """
    path = place.file("preprocessor_config.json") or place.file("processor_config.json")
    if path is None:
        raise ModelError(f"{place.name}: has no preprocessor_config.json; give an image_processor")
    try:
        return read_naflex(read_json(path)) or ImageProcessor.from_json(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{place.name}: {error}") from error
