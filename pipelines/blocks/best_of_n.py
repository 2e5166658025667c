"""A block of Modular Diffusers: draw several candidates, and rank them by a CLIP."""

from copy import deepcopy
from typing import Any, ClassVar

import torch
from diffusers import ModularPipelineBlocks, StableDiffusionXLAutoBlocks
from diffusers.modular_pipelines import ComponentSpec, InputParam, OutputParam, PipelineState

from clip_guidance import CLIP, best_of
from clip_guidance.guidance import CLIPReward

from .around import AroundBlock, loaded

_CALL = ("prompt", "prompt_embeds", "output_type")  # tell best_of the number of prompts, and what images are
_FOUND = ("images", "rewards", "seeds")


class BestOfN(AroundBlock):
    """Run blocks once for each candidate, and put the images in the order of a CLIP's logit, best first.

    Args:
        blocks: What makes ``images`` from a ``generator``: all blocks of a modular pipeline, or those from the initial
            noise to the decoder; None for all of Stable Diffusion XL.
    """

    _requirements: ClassVar = {"clip-guidance": ">=0.1"}
    description = "Draw num_candidates images, and rank them by how well a CLIP finds judge_prompt, or else the prompt."
    own_components = (ComponentSpec("judge", CLIP, pretrained_model_name_or_path="openai/clip-vit-large-patch14"),)
    own_inputs = (
        InputParam("prompt", description="What the judge looks for, where there is no judge_prompt."),
        InputParam("judge_prompt", description="What the judge looks for: any target of CLIPGuidance."),
        InputParam("num_candidates", int, 4, description="Number of candidates of each prompt, at least 1."),
        InputParam("seed", int, 0, description="Seed of the first candidate; number i has seed + i."),
    )
    own_outputs = (
        OutputParam("rewards", description="The judge's logit of each image, falling."),
        OutputParam("seeds", description="The seed of each image."),
    )
    taken = ("generator",)

    def __init__(self, blocks: ModularPipelineBlocks | None = None) -> None:
        super().__init__(StableDiffusionXLAutoBlocks() if blocks is None else blocks)

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [each for each in super().intermediate_outputs if each.name in _FOUND]  # not what one candidate left

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Set ``images``, ``rewards`` and ``seeds``, each a list; for a list of prompts a list of such lists.

        Raises:
            ValueError: There is no judge, nothing for it to look for, or a ``generator``.
            FailedImageError: Every candidate failed.
        """
        given = self.given(state)
        target = given.prompt if given.judge_prompt is None else given.judge_prompt
        if target is None:
            raise ValueError("best-of-n ranks by judge_prompt, or else the prompt; got neither")
        if state.get("generator") is not None:
            raise ValueError("best-of-n draws candidate number i from seed + i: give seed in place of a generator")

        def draw(generator: Any, **call: Any) -> PipelineState:
            values = {**state.values, "generator": generator}
            return self.inner(components, PipelineState(values, deepcopy(state.kwargs_mapping)))[1]

        call = {name: state.get(name) for name in _CALL}
        reward = CLIPReward(loaded(components, "judge"), target)
        found = best_of(draw, given.num_candidates, reward, seed=given.seed, **call)
        for name in _FOUND:
            values = [getattr(each, name) for each in (found if isinstance(found, list) else [found])]
            state.set(name, values if isinstance(found, list) else values[0])
        return components, state
