"""Run Stable Diffusion with CLIP guidance as arguments of its call, without a ``with`` block.

    pipe = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline="pipelines/clip_guided_stable_diffusion.py", trust_remote_code=True
    )
    pipe("an apple", clip=clip, clip_prompt="a red apple", clip_scale=2.0).images[0]

It composes :class:`clip_guidance.CLIPGuidance` with the stock pipeline and adds nothing of its own.
"""

from collections.abc import Sequence
from typing import Any

from diffusers import StableDiffusionPipeline

from clip_guidance import CLIP, CLIPGuidance


class CLIPGuidedStableDiffusionPipeline(StableDiffusionPipeline):
    """The stock pipeline, steered while it is called."""

    def __call__(
        self,
        prompt: str | Sequence[str],
        *args: Any,
        clip: CLIP,
        clip_prompt: Any = None,
        clip_scale: float = 1.0,
        clip_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate images of ``prompt``, steered towards ``clip_prompt``.

        Args:
            prompt: As for ``StableDiffusionPipeline``, which also takes ``args`` and ``kwargs``.
            clip: The CLIP that steers.
            clip_prompt: What the CLIP steers towards, any target of ``CLIPGuidance``; the prompt by default.
            clip_scale: Strength of the steering; 0 is the stock pipeline bit for bit.
            clip_options: Further arguments of ``CLIPGuidance`` (``mode``, ``start``, ``cutouts`` ...).
        """
        target = prompt if clip_prompt is None else clip_prompt
        guidance = CLIPGuidance(clip, target, scale=clip_scale, **(clip_options or {}))
        with guidance.attach(self):
            return super().__call__(prompt, *args, **kwargs)
