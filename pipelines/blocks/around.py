"""A block that goes around another one, and takes its place in a modular pipeline."""

from typing import Any

from diffusers import ModularPipelineBlocks
from diffusers.modular_pipelines import BlockState, ComponentSpec, ConfigSpec, InputParam, OutputParam, PipelineState


class AroundBlock(ModularPipelineBlocks):
    """Read, write and need what the inner block does, and more.

    The inner block is no entry of ``sub_blocks``: diffusers takes those out of a block to make a workflow of them, and
    this block would be lost without a word.
    """

    own_components: tuple[ComponentSpec, ...] = ()
    own_inputs: tuple[InputParam, ...] = ()
    own_outputs: tuple[OutputParam, ...] = ()
    taken: tuple[str, ...] = ()  # inputs of the inner block that this block sets itself

    def __init__(self, inner: ModularPipelineBlocks) -> None:
        super().__init__()
        if not isinstance(inner, ModularPipelineBlocks):
            raise TypeError(
                f"{type(self).__name__} goes around a block of a modular pipeline, such as "
                f"StableDiffusionXLAutoBlocks().sub_blocks['denoise'], got {type(inner).__name__} {inner!r:.60}"
            )
        self.inner = inner

    @property
    def model_name(self) -> str | None:
        return self.inner.model_name

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [*self.inner.expected_components, *self.own_components]

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        return self.inner.expected_configs

    @property
    def inputs(self) -> list[InputParam]:
        inner = [each for each in self.inner.inputs if each.name not in self.taken]
        names = {each.name for each in inner}
        return [*inner, *(each for each in self.own_inputs if each.name not in names)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [*self.inner.intermediate_outputs, *self.own_outputs]

    def given(self, state: PipelineState) -> BlockState:
        """Read this block's own inputs; those of the inner block may not be there before it runs."""
        values = {each.name: state.get(each.name) for each in self.own_inputs}
        defaults = {each.name: each.default for each in self.own_inputs}
        return BlockState(**{name: defaults[name] if value is None else value for name, value in values.items()})


def loaded(components: Any, name: str) -> Any:
    """Return a component of the pipeline.

    Raises:
        ValueError: It has not been loaded.
    """
    component = getattr(components, name, None)
    if component is None:
        raise ValueError(
            f"the pipeline has no {name} yet: pipe.load_components('{name}') loads the default one, and "
            f"pipe.update_components({name}=clip) sets one that you have loaded"
        )
    return component
