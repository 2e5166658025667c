"""Zero-shot classification by a CLIP."""

from clip_guidance.zero_shot.classifier import Prediction as Prediction
from clip_guidance.zero_shot.classifier import ZeroShotClassifier as ZeroShotClassifier
from clip_guidance.zero_shot.classifier import ZeroShotResult as ZeroShotResult

__all__ = ["Prediction", "ZeroShotClassifier", "ZeroShotResult"]
