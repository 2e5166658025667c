"""Peak memory of a guided step: measure its parts, and plan a setting for a budget."""

from clip_guidance.guidance.memory.plan import MemoryPlan as MemoryPlan
from clip_guidance.guidance.memory.plan import plan_memory as plan_memory

__all__ = ["MemoryPlan", "plan_memory"]
