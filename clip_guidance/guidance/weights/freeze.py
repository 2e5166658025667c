"""Disable ``requires_grad`` of parameters: guidance needs gradients of the input only.

With it enabled, autograd would keep activations for the gradient of every weight. Several guidances may freeze the same
weights, in any order and in several threads, so freezes are counted, and the last exit restores the weights. A weight
is identified by its module and name, because offloading replaces the tensor.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

_lock = threading.RLock()  # a generator that is collected while the lock is held may end a freeze
_holds: dict[tuple[int, str], int] = {}  # (id of a module, name of its parameter) -> number of open freezes


@contextmanager
def freeze_parameters(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Disable ``requires_grad`` of all parameters in the ``with`` block; restore it afterwards.

    Args:
        networks: Modules, which may share parameters.
    """
    held: list[tuple[nn.Module, str]] = []
    modules = {id(module): module for network in networks for module in network.modules()}
    with _lock:
        for module in modules.values():
            for name, parameter in module._parameters.items():
                # Only the first name of a tied weight is counted: at the second it is frozen already.
                if parameter is not None and (parameter.requires_grad or (id(module), name) in _holds):
                    parameter.requires_grad_(False)
                    _holds[id(module), name] = _holds.get((id(module), name), 0) + 1
                    held.append((module, name))
    try:
        yield
    finally:
        with _lock:
            for module, name in held:
                _holds[id(module), name] -= 1
                if not _holds[id(module), name]:
                    del _holds[id(module), name]
                    if (parameter := module._parameters.get(name)) is not None:
                        parameter.requires_grad_(True)
