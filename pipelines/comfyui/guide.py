"""Load what steers and judges: a CLIP, or a reward of another project."""

import os

import torch

import clip_guidance as cg
from clip_guidance.clip import DualEncoder
from clip_guidance.clip.hub import packaged_models
from clip_guidance.guidance import CLIPReward
from clip_guidance.rewards import PromptReward
from clip_guidance.rewards.load import REPOSITORIES

GUIDE = "CLIP_GUIDE"  # the type of the connection
CATEGORY = "clip_guidance"
Guide = DualEncoder | PromptReward


class LoadGuide:
    """Load a CLIP, or a reward, by its name."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = (GUIDE,), ("guide",)
    DESCRIPTION = (
        "Load a CLIP (a packaged name, a folder, or a hub id of transformers or, as hf-hub:owner/name, of open_clip) "
        "or a reward (pickscore, hpsv2.1, aesthetic, imagereward, a folder or a hub id)."
    )

    @classmethod
    def INPUT_TYPES(cls):
        name = {"default": "emoji", "tooltip": "A packaged name, the name of a reward, a folder, or a hub id"}
        return {"required": {"kind": (["CLIP", "reward"],), "name": ("STRING", name)}}

    @classmethod
    def VALIDATE_INPUTS(cls, kind, name):
        """Refuse a name that can be nothing before the graph runs, so that what does not need it goes on."""
        known = packaged_models() if kind == "CLIP" else list(REPOSITORIES)
        if name in known or os.path.exists(name) or (name.count("/") == 1 and not name.startswith(("/", ".", "~"))):
            return True
        return f"no {kind} {name[:80]!r}: expected one of {', '.join(known)}, a folder, or a hub id (owner/name)"

    def load(self, kind, name):
        with torch.inference_mode(False):  # what is loaded in inference mode can never be differentiated
            return (cg.CLIP.from_pretrained(name) if kind == "CLIP" else cg.load_reward(name),)


def as_reward(guide: Guide, prompt: str, cutouts: cg.Cutouts | None = None, images=()) -> torch.nn.Module:
    """Make the differentiable reward (B, 3, H, W) -> (B,) of a guide and its targets.

    Args:
        guide: What the loader returned.
        prompt: The text; empty for none.
        cutouts: Views of a CLIP; None for the whole image.
        images: Images (3, H, W) that a CLIP takes as targets beside the text; their weights add up to 1.

    Raises:
        ValueError: There is no target, or a reward is given what it does not read.
    """
    prompt = prompt.strip()
    if isinstance(guide, PromptReward):
        if len(images) or cutouts is not None:
            raise ValueError(f"{guide.name} rates whole images against texts: leave out image, and cutouts=1")
        if not guide.needs_prompt:
            return guide
        if not prompt:
            raise ValueError(f"{guide.name} rates images against a text: the prompt is empty")
        return guide.with_prompts(prompt)
    target = [(prompt, 1.0)] if prompt else []
    target += [(image, 1 / len(images)) for image in images]
    if not target:
        raise ValueError("there is nothing to steer towards: give a prompt, or an image, or both")
    return CLIPReward(guide, target, cutouts)
