"""A block of Modular Diffusers: denoise with CLIP guidance attached."""

from typing import Any, ClassVar

from diffusers import ModularPipelineBlocks, StableDiffusionXLAutoBlocks
from diffusers.modular_pipelines import ComponentSpec, InputParam

from clip_guidance import CLIP, CLIPGuidance

from .around import AroundBlock, loaded


class CLIPGuidedDenoise(AroundBlock):
    """Run a denoise block, steered by a CLIP.

    Args:
        denoise: The block with the denoising loop of any modular pipeline; None for that of Stable Diffusion XL.
    """

    _requirements: ClassVar = {"clip-guidance": ">=0.1"}
    description = "Denoise, steered by a CLIP towards clip_prompt, or else the prompt."
    own_components = (ComponentSpec("clip", CLIP, pretrained_model_name_or_path="openai/clip-vit-base-patch32"),)
    own_inputs = (
        InputParam("prompt", description="What to steer towards, where there is no clip_prompt."),
        InputParam("clip_prompt", description="What to steer towards: any target of CLIPGuidance."),
        InputParam("clip_scale", float, 1.0, description="Strength of the steering; 0 changes nothing."),
        InputParam("clip_options", dict, description="Further arguments of CLIPGuidance, such as mode or cutouts."),
    )

    def __init__(self, denoise: ModularPipelineBlocks | None = None) -> None:
        super().__init__(StableDiffusionXLAutoBlocks().sub_blocks["denoise"] if denoise is None else denoise)

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Run the denoise block, and leave the pipeline as it was.

        Raises:
            ValueError: There is neither a ``clip_prompt`` nor a prompt, or the pipeline cannot be steered.
        """
        given = self.given(state)
        target = given.prompt if given.clip_prompt is None else given.clip_prompt
        if target is None:
            raise ValueError("clip-guided denoise steers towards clip_prompt, or else the prompt; got neither")
        guidance = CLIPGuidance(loaded(components, "clip"), target, given.clip_scale, **(given.clip_options or {}))
        with guidance.attach(components):
            return self.inner(components, state)
