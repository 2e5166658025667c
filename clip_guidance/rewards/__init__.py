"""Rewards of other projects: PickScore, HPSv2.1, the aesthetic predictors and ImageReward."""

from clip_guidance.rewards.base import PromptReward, RewardError
from clip_guidance.rewards.load import load_reward

__all__ = ["PromptReward", "RewardError", "load_reward"]
