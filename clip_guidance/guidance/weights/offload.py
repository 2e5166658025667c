"""Keep weights of offloaded networks in place while guidance differentiates through them.

Offloading is written for forwards: a network leaves the accelerator when its forward ends, or when the forward of the
next network begins. A backward needs the weights where they were in the forward.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from clip_guidance.guidance.weights.hold import held


@contextmanager
def keep_onloaded(module: nn.Module) -> Iterator[None]:
    """Prevent group offloading from offloading weights of ``module`` in the ``with`` block.

    Weights that are onloaded inside are offloaded at the end.
    """
    with ExitStack() as stack:
        for group in _groups(module):
            stack.enter_context(held(group, "offload_", _do_nothing, released=partial(_offload, group)))
        yield


@contextmanager
def onloaded(module: nn.Module) -> Iterator[None]:
    """Onload the weights of ``module`` that group offloading keeps elsewhere, to read them."""
    with keep_onloaded(module):
        for group in _groups(module):
            group.onload_()
            if group.stream is not None:
                group.stream.synchronize()
        yield


@contextmanager
def no_neighbour_offload(module: nn.Module) -> Iterator[None]:
    """Prevent ``enable_model_cpu_offload`` from offloading other models when ``module`` runs.

    The forward of a decoder would offload the denoiser. In the middle of a run the denoiser would then move out and in
    again at every guided step, and mode "exact" would find the denoiser's weights on another device in the backward.
    """
    hook: Any = getattr(module, "_hf_hook", None)
    hooks = [each for each in getattr(hook, "hooks", [hook]) if hasattr(each, "prev_module_hook")]
    with ExitStack() as stack:
        for each in hooks:
            stack.enter_context(held(each, "prev_module_hook", None))
        yield


def _offload(group: Any) -> None:
    group.offload_()  # looked up now, when it offloads again


def _do_nothing() -> None:
    """Replace a group's ``offload_``."""


def _groups(module: nn.Module) -> list[Any]:
    """Return the groups of weights of diffusers' ``apply_group_offloading``."""
    registries = (getattr(each, "_diffusers_hook", None) for each in module.modules())
    hooks = (registry.get_hook("group_offloading") for registry in registries if registry is not None)
    return list({id(hook.group): hook.group for hook in hooks if hook is not None}.values())
