"""Steer any diffusers pipeline with a differentiable reward: :class:`Guidance`, :class:`CLIPGuidance`."""

from clip_guidance.guidance.guidance import CLIPGuidance as CLIPGuidance
from clip_guidance.guidance.guidance import Guidance as Guidance
from clip_guidance.guidance.guidance import GuidanceReport as GuidanceReport
from clip_guidance.guidance.noise import UnsupportedSchedulerError as UnsupportedSchedulerError

__all__ = ["CLIPGuidance", "Guidance", "GuidanceReport", "UnsupportedSchedulerError"]
