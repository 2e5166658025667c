"""A block of Modular Diffusers: score a pipeline's images by a CLIP."""

from typing import Any, ClassVar

from diffusers import ModularPipelineBlocks
from diffusers.modular_pipelines import ComponentSpec, InputParam, OutputParam

from clip_guidance import CLIP, clip_score
from clip_guidance.images.load import as_list
from clip_guidance.rewards.base import as_prompts, shared_out

from .around import loaded


class CLIPJudge(ModularPipelineBlocks):
    """Score images against prompts, 100 · cos(image, prompt)."""

    _requirements: ClassVar = {"clip-guidance": ">=0.1"}
    description = "Score each image against judge_prompt, or else the prompt: 100 · cos(image, prompt)."
    expected_components = (ComponentSpec("judge", CLIP, pretrained_model_name_or_path="openai/clip-vit-large-patch14"),)
    inputs = (
        InputParam("images", required=True, description="The images that a decode block made."),
        InputParam("prompt", description="What to compare with, where there is no judge_prompt."),
        InputParam("judge_prompt", description="A text for all images, or one for each of the pipeline's prompts."),
    )
    intermediate_outputs = (OutputParam("scores", description="A number for each image, tensor (n,)."),)

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Set ``scores``.

        Raises:
            ValueError: There is no judge, or there are no prompts that it can read.
        """
        given = self.get_block_state(state)
        judge = loaded(components, "judge")
        prompts = given.prompt if given.judge_prompt is None else given.judge_prompt
        if prompts is None:
            raise ValueError("clip-judge compares images with judge_prompt, or else the prompt; got neither")
        images = as_list(given.images)
        given.scores = clip_score(judge, images, shared_out(as_prompts(prompts), len(images), "clip-judge"))
        self.set_block_state(state, given)
        return components, state
