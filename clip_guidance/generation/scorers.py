"""CLIPs and rewards that score a generated image or rank its candidates, and the records of their scores.

A record is made once for each model, because a fingerprint reads every weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from clip_guidance.clip import CLIP, DualEncoder
from clip_guidance.generation.image import GeneratedImage
from clip_guidance.guidance import CLIPReward
from clip_guidance.metrics.clip_score import TORCHMETRICS, clip_score
from clip_guidance.rewards import ImageJudge, PromptReward, as_judge, load_reward


@dataclass(frozen=True)
class Rater:
    """Rate one image, without gradients; the record tells by what, and with which weight.

    A rating may come out without being finite, which costs that image alone.
    """

    judge: ImageJudge
    record: dict[str, Any]

    def __call__(self, image: Image.Image) -> float:
        return float(self.record["weight"]) * self.judge.ratings([image]).item()


@dataclass
class CLIPScorer:
    """A CLIP and the record of its score."""

    clip: DualEncoder
    record: dict[str, Any]

    @classmethod
    def load(cls, name: str, device: str | torch.device) -> CLIPScorer:
        """Load the CLIP of this name."""
        clip = CLIP.from_pretrained(name).to(device)
        return cls(clip, TORCHMETRICS.record(clip))

    def rater(self, target: Any, weight: float = 1.0) -> Rater:
        """Make what rates images by this CLIP's logit of a target, as for ``CLIPGuidance``."""
        model = {name: self.record[name] for name in ("model", "fingerprint")}
        return Rater(as_judge(CLIPReward(self.clip, target)), {"definition": "logit", **model, "weight": weight})

    def score(self, generated: GeneratedImage) -> dict[str, Any]:
        """Score an image against the text that it is steered to, and tell whether this CLIP steered or chose it."""
        target = generated.settings.target
        score = clip_score(self.clip, generated.image, target, TORCHMETRICS).item()
        guided = generated.guide is not None and generated.guide["fingerprint"] == self.record["fingerprint"]
        return _row(generated, score, guided, self.record)


@dataclass
class RewardScorer:
    """A reward that steers, and the record of its rating."""

    reward: PromptReward
    record: dict[str, Any]

    @classmethod
    def load(cls, name: str, device: str | torch.device) -> RewardScorer:
        """Load the reward of this name."""
        reward = load_reward(name, device=device)
        return cls(reward, reward.record())

    def rater(self, prompt: str, weight: float = 1.0) -> Rater:
        """Make what rates images by this reward against a prompt."""
        return Rater(as_judge(self.reward, prompt), {**self.record, "weight": weight})

    def score(self, generated: GeneratedImage) -> dict[str, Any]:
        """Rate an image against the text that it is steered to."""
        score = self.reward.score(generated.image, generated.settings.target).item()
        return _row(generated, score, True, self.record)


def _row(generated: GeneratedImage, score: float, guided: bool, record: dict[str, Any]) -> dict[str, Any]:
    ranked_by = generated.choice.ranked_by if generated.choice else []
    chose = {"chose": True} if record["fingerprint"] in (each["fingerprint"] for each in ranked_by) else {}
    return {"score": score, "prompt": generated.settings.target, "guided": guided, **chose, **record}
