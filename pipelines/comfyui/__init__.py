"""ComfyUI nodes of clip-guidance: CLIP and rewards steer, choose and judge the images of a graph."""

from .choose import BestOf, Score
from .guide import LoadGuide
from .particles import ParticleSampler
from .steer import CLIPGuidance

NODE_CLASS_MAPPINGS = {
    "ClipGuidanceLoad": LoadGuide,
    "ClipGuidanceSteer": CLIPGuidance,
    "ClipGuidanceParticles": ParticleSampler,
    "ClipGuidanceScore": Score,
    "ClipGuidanceBestOf": BestOf,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "ClipGuidanceLoad": "Load CLIP/Reward (clip-guidance)",
    "ClipGuidanceSteer": "CLIP Guidance",
    "ClipGuidanceParticles": "Particles",
    "ClipGuidanceScore": "CLIP Score",
    "ClipGuidanceBestOf": "Best of Batch",
}
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
