"""Networks that move between devices while guidance differentiates through them.

Offloading is written for forwards: a network leaves the accelerator when its forward ends, or when the next one
wakes. A backward needs its weights where they were.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def keep_onloaded(module: nn.Module) -> Iterator[None]:
    """Inside, weights of ``module`` that diffusers' group offloading brings in stay until the end."""
    groups = [group for group in _groups(module) if "offload_" not in vars(group)]  # others are held already
    for group in groups:
        group.offload_ = _stay
    try:
        yield
    finally:
        for group in groups:
            del group.offload_
            group.offload_()


@contextmanager
def onloaded(module: nn.Module) -> Iterator[None]:
    """Inside, weights of ``module`` that group offloading keeps elsewhere, perhaps on a disk, are here to be read."""
    with keep_onloaded(module):
        for group in _groups(module):
            group.onload_()
            if group.stream is not None:
                group.stream.synchronize()
        yield


@contextmanager
def no_neighbour_offload(module: nn.Module) -> Iterator[None]:
    """Inside, ``module`` sends no other network away when it wakes under ``enable_model_cpu_offload``.

    A decoder that wakes sends away the denoiser. In the middle of a run it would have to move out and in again at
    every guided step, and mode "exact" would find its weights on another device in the backward.
    """
    hook: Any = getattr(module, "_hf_hook", None)
    hooks = [each for each in getattr(hook, "hooks", [hook]) if getattr(each, "prev_module_hook", None) is not None]
    neighbours = [each.prev_module_hook for each in hooks]
    for each in hooks:
        each.prev_module_hook = None
    try:
        yield
    finally:
        for each, neighbour in zip(hooks, neighbours, strict=True):
            each.prev_module_hook = neighbour


def _stay() -> None:
    """In place of a group's ``offload_``."""


def _groups(module: nn.Module) -> list[Any]:
    """The groups of weights of diffusers' ``apply_group_offloading``."""
    registries = (getattr(each, "_diffusers_hook", None) for each in module.modules())
    hooks = (registry.get_hook("group_offloading") for registry in registries if registry is not None)
    return list({id(hook.group): hook.group for hook in hooks if hook is not None}.values())
