"""Weights that take no gradient while something differentiates through them with respect to its input alone.

Without this every weight on the gradient's way would have its activations kept. Several guidances may hold the same
weights, in any order and in several threads, so holds are counted, and the last to let go restores them. A weight is
named by its module, since offloading puts another tensor in its place.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

_lock = threading.Lock()
_holds: dict[tuple[int, str], int] = {}  # (id of a module, name of its parameter frozen here) -> by how many


@contextmanager
def freeze_parameters(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, no parameter of ``networks`` requires a gradient; those that were frozen before stay it afterwards."""
    held: list[tuple[nn.Module, str]] = []
    modules = {id(module): module for network in networks for module in network.modules()}
    with _lock:
        for module in modules.values():
            for name, parameter in module._parameters.items():
                # Of a tied weight only the first name is held: at its second it is frozen already.
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
