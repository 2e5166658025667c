"""Steer any diffusers pipeline with a differentiable reward, or with a CLIP."""

from clip_guidance.guidance.adapters.noise_level import UnsupportedSchedulerError as UnsupportedSchedulerError
from clip_guidance.guidance.adaptive_cfg import AdaptiveCFG as AdaptiveCFG
from clip_guidance.guidance.clip import CLIPGuidance as CLIPGuidance
from clip_guidance.guidance.clip_reward import CLIPReward as CLIPReward
from clip_guidance.guidance.cutouts import Cutouts as Cutouts
from clip_guidance.guidance.decoding import Decoding as Decoding
from clip_guidance.guidance.decoding import DecodingChoice as DecodingChoice
from clip_guidance.guidance.engine.choice import ScaleReport as ScaleReport
from clip_guidance.guidance.guidance import Guidance as Guidance
from clip_guidance.guidance.memory.plan import MemoryPlan as MemoryPlan
from clip_guidance.guidance.memory.plan import plan_memory as plan_memory
from clip_guidance.guidance.options import GuidanceReport as GuidanceReport
from clip_guidance.guidance.regions import Region as Region
from clip_guidance.guidance.rewards import WeightedRewards as WeightedRewards
from clip_guidance.guidance.x0_steering import X0Steering as X0Steering

__all__ = [
    "CLIPGuidance",
    "Guidance",
    "GuidanceReport",
    "CLIPReward",
    "AdaptiveCFG",
    "ScaleReport",
    "X0Steering",
    "Region",
    "WeightedRewards",
    "Cutouts",
    "Decoding",
    "DecodingChoice",
    "MemoryPlan",
    "plan_memory",
    "UnsupportedSchedulerError",
]
