"""CLIP inside diffusion: it conditions generation, steers it and judges what came out.

Nothing heavy is imported before it is used (PEP 562), so ``clip-guidance --help`` answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "CLIP": "clip",
    "CLIPConfig": "clip",
    "load_pipeline": "pipeline",
    "Guidance": "guidance",
    "CLIPGuidance": "guidance",
    "WeightedRewards": "guidance",
    "Cutouts": "guidance",
    "Decoding": "guidance",
    "plan_memory": "guidance",
    "ZeroShotClassifier": "zero_shot",
    "ZeroShotResult": "zero_shot",
    "clip_score": "score",
    "ref_clip_score": "score",
    "directional_similarity": "score",
    "clip_iqa": "image_quality",
    "aesthetic_score": "aesthetic",
    "clip_r_precision": "r_precision",
    "set_distances": "set_distance",
    "get_picture_score": "picture_scores",
    "score_pictures": "picture_scores",
    "compare_scores": "comparison",
    "image_similarity": "similarity",
    "ImageIndex": "index",
    "ModelError": "hub",
    "ImageError": "images",
    "PromptTruncatedWarning": "tokenizer",
}
_MODULES = ("loss", "towers", "guidance")

if TYPE_CHECKING:
    from clip_guidance import guidance as guidance
    from clip_guidance import loss as loss
    from clip_guidance import towers as towers
    from clip_guidance.aesthetic import aesthetic_score as aesthetic_score
    from clip_guidance.clip import CLIP as CLIP
    from clip_guidance.clip import CLIPConfig as CLIPConfig
    from clip_guidance.comparison import compare_scores as compare_scores
    from clip_guidance.guidance import CLIPGuidance as CLIPGuidance
    from clip_guidance.guidance import Cutouts as Cutouts
    from clip_guidance.guidance import Decoding as Decoding
    from clip_guidance.guidance import Guidance as Guidance
    from clip_guidance.guidance import WeightedRewards as WeightedRewards
    from clip_guidance.guidance import plan_memory as plan_memory
    from clip_guidance.hub import ModelError as ModelError
    from clip_guidance.image_quality import clip_iqa as clip_iqa
    from clip_guidance.images import ImageError as ImageError
    from clip_guidance.index import ImageIndex as ImageIndex
    from clip_guidance.picture_scores import get_picture_score as get_picture_score
    from clip_guidance.picture_scores import score_pictures as score_pictures
    from clip_guidance.pipeline import load_pipeline as load_pipeline
    from clip_guidance.r_precision import clip_r_precision as clip_r_precision
    from clip_guidance.score import clip_score as clip_score
    from clip_guidance.score import directional_similarity as directional_similarity
    from clip_guidance.score import ref_clip_score as ref_clip_score
    from clip_guidance.set_distance import set_distances as set_distances
    from clip_guidance.similarity import image_similarity as image_similarity
    from clip_guidance.tokenizer import PromptTruncatedWarning as PromptTruncatedWarning
    from clip_guidance.zero_shot import ZeroShotClassifier as ZeroShotClassifier
    from clip_guidance.zero_shot import ZeroShotResult as ZeroShotResult

__all__ = ["__version__", *_EXPORTS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"clip_guidance.{_EXPORTS[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"clip_guidance.{name}")
    raise AttributeError(f"module 'clip_guidance' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
