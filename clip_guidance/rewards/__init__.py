"""Rewards: PickScore, HPSv2.1, the aesthetic predictors and ImageReward, and those of one's own in any form."""

from clip_guidance.rewards.base import PromptReward, RewardError
from clip_guidance.rewards.load import load_reward
from clip_guidance.rewards.protocol import ImageJudge, Scorer, as_judge, as_steering

__all__ = ["ImageJudge", "PromptReward", "RewardError", "Scorer", "as_judge", "as_steering", "load_reward"]
