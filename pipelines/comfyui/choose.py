"""Judge images by a CLIP or a reward, and keep the best of a batch."""

import torch

import clip_guidance as cg
from clip_guidance.rewards import PromptReward
from clip_guidance.rewards.protocol import as_judge

from .guide import CATEGORY, GUIDE, as_reward

DEFINITIONS = ["cosine", "torchmetrics", "hessel"]
PROMPT = ("STRING", {"multiline": True, "default": ""})


class Score:
    """Score images against a text."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "score", True
    RETURN_TYPES, RETURN_NAMES, OUTPUT_IS_LIST = ("FLOAT", "STRING"), ("scores", "text"), (True, False)
    DESCRIPTION = "Score each image. The guide that steered an image cannot judge it: load another one."

    @classmethod
    def INPUT_TYPES(cls):
        definition = {"tooltip": "Of a CLIP's score; a reward has its own"}
        return {
            "required": {
                "images": ("IMAGE",),
                "guide": (GUIDE,),
                "prompt": PROMPT,
                "definition": (DEFINITIONS, definition),
            }
        }

    def score(self, images, guide, prompt, definition):
        pixels = _pixels(images)
        with torch.inference_mode(False), torch.no_grad():
            if isinstance(guide, PromptReward):
                scores = as_judge(as_reward(guide, prompt))(pixels).tolist()
            else:
                scores = cg.clip_score(guide, pixels, prompt, definition).tolist()
        text = "\n".join(f"{place}: {score:.4f}" for place, score in enumerate(scores))
        return {"ui": {"text": [text]}, "result": (scores, text)}


class BestOf:
    """Keep the best images of a batch."""

    CATEGORY, FUNCTION = CATEGORY, "choose"
    RETURN_TYPES, RETURN_NAMES = ("IMAGE", "LATENT", "FLOAT"), ("images", "latents", "rewards")
    OUTPUT_IS_LIST = (False, False, True)
    DESCRIPTION = "Rate the images of a batch and keep the best, best first; their latents go with them."

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "images": ("IMAGE",),
                "guide": (GUIDE,),
                "prompt": PROMPT,
                "keep": ("INT", {"default": 1, "min": 1, "max": 4096, "tooltip": "How many; all if there are fewer"}),
            },
            "optional": {"latents": ("LATENT", {"tooltip": "The latents of the images, to go on with the best"})},
        }

    def choose(self, images, guide, prompt, keep, latents=None):
        if latents is not None and len(latents["samples"]) != len(images):
            raise ValueError(
                f"expected the latents of the images, one for each: got {len(latents['samples'])} for {len(images)}"
            )
        with torch.inference_mode(False):
            rewards = as_judge(as_reward(guide, prompt))(_pixels(images))
        best = rewards.argsort(descending=True, stable=True)[:keep]
        return images[best.to(images.device)], _rows(latents, best, len(images)), rewards[best].tolist()


def _pixels(images: torch.Tensor) -> torch.Tensor:
    """Return ComfyUI's IMAGE (B, H, W, C) as (B, 3, H, W) in [0, 1], in a tensor that autograd takes."""
    with torch.inference_mode(False):
        return images.clone().movedim(-1, 1)[:, :3].clamp(0, 1)


def _rows(latents: dict | None, rows: torch.Tensor, count: int) -> dict | None:
    """Return these rows of all that a LATENT holds of each image."""
    if latents is None:
        return None
    found = dict(latents)
    for name, value in latents.items():
        if isinstance(value, torch.Tensor) and len(value) == count:
            found[name] = value[rows.to(value.device)]
        elif isinstance(value, list) and len(value) == count:  # batch_index
            found[name] = [value[row] for row in rows.tolist()]
    return found
