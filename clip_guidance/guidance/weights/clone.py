"""Copies of networks with other weights: in another precision or place, or without data.

The original may be offloaded, compiled, or in use by another thread; it is not changed.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

_HOOKS = ("_hf_hook", "_diffusers_hook")  # accelerate and diffusers replace `forward` and keep these
_NOT_COPIED = (*_HOOKS, "forward", "_old_forward")


def clone(network: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy a network; the copy shares everything with it but weights and buffers.

    Offloading hooks and compiled code are not copied. No weight of the copy requires a gradient.

    Args:
        network: Any module.
        make: From a weight or buffer of the network to the one of the copy; called once for a shared weight.

    Returns:
        The copy.
    """
    copies: dict[int, Any] = {}  # by the id of the original, which outlives this dictionary

    def of_tensor(tensor: Tensor | None) -> Any:
        if tensor is not None and id(tensor) not in copies:
            made = make(tensor.detach())
            copies[id(tensor)] = nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
        return None if tensor is None else copies[id(tensor)]

    def of_module(module: nn.Module | None) -> nn.Module | None:
        module = getattr(module, "_orig_mod", module)  # the module inside a wrapper of torch.compile
        if module is None or id(module) in copies:
            return copies.get(id(module))
        new = copies[id(module)] = copy.copy(module)  # the copy has no code of compiling in place
        if any(name in vars(module) for name in _HOOKS):
            for name in _NOT_COPIED:
                vars(new).pop(name, None)
        new._parameters = {name: of_tensor(weight) for name, weight in module._parameters.items()}
        new._buffers = {name: of_tensor(buffer) for name, buffer in module._buffers.items()}
        new._modules = {name: of_module(child) for name, child in module._modules.items()}
        return new

    found = of_module(network)
    assert found is not None
    return found
