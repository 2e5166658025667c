"""Run a stock pipeline with CLIP guidance as arguments of its call, without a ``with`` block.

    pipe = DiffusionPipeline.from_pretrained(
        folder, custom_pipeline="pipelines/clip_guided_stable_diffusion.py", trust_remote_code=True
    )
    pipe("an apple", clip=clip, clip_prompt="a red apple", clip_scale=2.0).images[0]

It composes :class:`clip_guidance.CLIPGuidance` with the stock pipeline and adds nothing of its own.
"""

from typing import Any

from diffusers import StableDiffusionPipeline

from clip_guidance import CLIPGuidance


class CLIPGuidedPipeline(StableDiffusionPipeline):
    """The stock pipeline, steered while it is called."""

    def __call__(
        self,
        prompt: Any = None,
        *args: Any,
        clip: Any = None,
        clip_prompt: Any = None,
        clip_scale: float = 1.0,
        clip_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate images of ``prompt``, steered towards ``clip_prompt``.

        Args:
            prompt: As for the stock pipeline, which also takes ``args`` and ``kwargs``.
            clip: The CLIP that steers, or its name or folder; without one the call is the stock pipeline's.
            clip_prompt: What the CLIP steers towards, any target of ``CLIPGuidance``; the prompt by default.
            clip_scale: Strength of the steering; 0 is the stock pipeline bit for bit.
            clip_options: Further arguments of ``CLIPGuidance`` (``mode``, ``start``, ``cutouts`` ...).

        Raises:
            TypeError: There is no ``clip``, but options for it.
            ValueError: There is a ``clip``, but neither a ``clip_prompt`` nor a prompt that it could read.
        """
        if clip is None:
            if clip_prompt is not None or clip_scale != 1.0 or clip_options:
                raise TypeError("clip_prompt, clip_scale and clip_options say how a CLIP steers: give it as clip=")
            return super().__call__(prompt, *args, **kwargs)
        target = prompt if clip_prompt is None else clip_prompt
        if target is None:
            raise ValueError("clip= steers towards clip_prompt, or else the prompt: it cannot read prompt_embeds")
        with CLIPGuidance(clip, target, clip_scale, **(clip_options or {})).attach(self):
            return super().__call__(prompt, *args, **kwargs)
