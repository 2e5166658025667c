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
    "DualEncoder": "clip",
    "load_pipeline": "generation.pipelines",
    "Guidance": "guidance",
    "CLIPGuidance": "guidance",
    "AdaptiveCFG": "guidance",
    "Region": "guidance",
    "Noisy": "guidance.modes.noisy",
    "Blend": "guidance.modes.blend",
    "NoisyTower": "towers.noisy",
    "WeightedRewards": "guidance",
    "Cutouts": "guidance",
    "Decoding": "guidance",
    "load_reward": "rewards",
    "best_of": "generation.best_of",
    "SearchResult": "generation.best_of",
    "optimize_noise": "generation.optimize_noise",
    "OptimizedNoise": "generation.optimize_noise",
    "tune": "generation.tuning",
    "TuningGrid": "generation.tuning",
    "TuneResult": "generation.tuning",
    "TunedPair": "_tuned",
    "load_tuned": "_tuned",
    "Particles": "guidance.particles",
    "ParticlesResult": "guidance.particles",
    "plan_memory": "guidance",
    "ZeroShotClassifier": "zero_shot",
    "ZeroShotResult": "zero_shot",
    "clip_score": "metrics.clip_score",
    "ref_clip_score": "metrics.clip_score",
    "directional_similarity": "metrics.clip_score",
    "clip_iqa": "metrics.clip_iqa",
    "aesthetic_score": "metrics.aesthetic",
    "clip_r_precision": "metrics.r_precision",
    "set_distances": "metrics.set_distance",
    "get_image_score": "metrics.registry",
    "score_images": "metrics.registry",
    "compare_scores": "metrics.comparison",
    "image_similarity": "metrics.similarity",
    "ImageIndex": "index",
    "ModelError": "clip",
    "ImageError": "images.load",
    "PromptTruncatedWarning": "clip",
}
_MODULES = ("loss", "towers", "guidance")

if TYPE_CHECKING:
    from clip_guidance import guidance as guidance
    from clip_guidance import loss as loss
    from clip_guidance import towers as towers
    from clip_guidance._tuned import TunedPair as TunedPair
    from clip_guidance._tuned import load_tuned as load_tuned
    from clip_guidance.clip import CLIP as CLIP
    from clip_guidance.clip import CLIPConfig as CLIPConfig
    from clip_guidance.clip import DualEncoder as DualEncoder
    from clip_guidance.clip.hub import ModelError as ModelError
    from clip_guidance.clip.tokenizer import PromptTruncatedWarning as PromptTruncatedWarning
    from clip_guidance.generation.best_of import SearchResult as SearchResult
    from clip_guidance.generation.best_of import best_of as best_of
    from clip_guidance.generation.optimize_noise import OptimizedNoise as OptimizedNoise
    from clip_guidance.generation.optimize_noise import optimize_noise as optimize_noise
    from clip_guidance.generation.pipelines import load_pipeline as load_pipeline
    from clip_guidance.generation.tuning import TuneResult as TuneResult
    from clip_guidance.generation.tuning import TuningGrid as TuningGrid
    from clip_guidance.generation.tuning import tune as tune
    from clip_guidance.guidance import AdaptiveCFG as AdaptiveCFG
    from clip_guidance.guidance import CLIPGuidance as CLIPGuidance
    from clip_guidance.guidance import Cutouts as Cutouts
    from clip_guidance.guidance import Decoding as Decoding
    from clip_guidance.guidance import Guidance as Guidance
    from clip_guidance.guidance import Region as Region
    from clip_guidance.guidance import WeightedRewards as WeightedRewards
    from clip_guidance.guidance import plan_memory as plan_memory
    from clip_guidance.guidance.modes.blend import Blend as Blend
    from clip_guidance.guidance.modes.noisy import Noisy as Noisy
    from clip_guidance.guidance.particles import Particles as Particles
    from clip_guidance.guidance.particles import ParticlesResult as ParticlesResult
    from clip_guidance.images.load import ImageError as ImageError
    from clip_guidance.index import ImageIndex as ImageIndex
    from clip_guidance.metrics.aesthetic import aesthetic_score as aesthetic_score
    from clip_guidance.metrics.clip_iqa import clip_iqa as clip_iqa
    from clip_guidance.metrics.clip_score import clip_score as clip_score
    from clip_guidance.metrics.clip_score import directional_similarity as directional_similarity
    from clip_guidance.metrics.clip_score import ref_clip_score as ref_clip_score
    from clip_guidance.metrics.comparison import compare_scores as compare_scores
    from clip_guidance.metrics.r_precision import clip_r_precision as clip_r_precision
    from clip_guidance.metrics.registry import get_image_score as get_image_score
    from clip_guidance.metrics.registry import score_images as score_images
    from clip_guidance.metrics.set_distance import set_distances as set_distances
    from clip_guidance.metrics.similarity import image_similarity as image_similarity
    from clip_guidance.rewards import load_reward as load_reward
    from clip_guidance.towers.noisy import NoisyTower as NoisyTower
    from clip_guidance.zero_shot.classifier import ZeroShotClassifier as ZeroShotClassifier
    from clip_guidance.zero_shot.classifier import ZeroShotResult as ZeroShotResult

__all__ = ["__version__", *_EXPORTS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"clip_guidance.{_EXPORTS[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"clip_guidance.{name}")
    raise AttributeError(f"module 'clip_guidance' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
