"""Copies of networks that compute with other weights: in another precision, in another place, or without any data.

The network itself may be offloaded, compiled, or at work in another thread; a copy leaves it as it is.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

_HOOKS = ("_hf_hook", "_diffusers_hook")  # accelerate's and diffusers', which put a `forward` of their own in its place
_NOT_COPIED = (*_HOOKS, "forward", "_old_forward")


def clone(network: nn.Module, make: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of ``network`` that shares everything with it but its weights and buffers.

    Hooks of offloading and compiled code are left behind. No weight of the copy takes a gradient.

    Args:
        network: Any module.
        make: From a weight or buffer of the network to that of the copy; called once for one that is shared.
    """
    copies: dict[int, Any] = {}  # by the id of the original, which outlives this

    def of_tensor(tensor: Tensor | None) -> Any:
        if tensor is not None and id(tensor) not in copies:
            made = make(tensor.detach())
            copies[id(tensor)] = nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
        return None if tensor is None else copies[id(tensor)]

    def of_module(module: nn.Module | None) -> nn.Module | None:
        module = getattr(module, "_orig_mod", module)  # torch.compile's
        if module is None or id(module) in copies:
            return copies.get(id(module))
        new = copies[id(module)] = copy.copy(module)  # without what compiling in place has made
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
