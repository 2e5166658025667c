"""Exchange rows of a batch in all that a scheduler keeps of it, and in what it returns.

Solvers of several steps remember model outputs, samples, derivatives or noise of the steps before, each as a tensor of
the sample's batch. Tables, such as sigmas and timesteps, have one dimension, where a sample has at least two.
"""

from collections.abc import Mapping
from typing import Any

from diffusers import SchedulerMixin
from torch import Tensor


def take_rows(scheduler: Any, rows: Tensor) -> None:
    """Let the history of a scheduler follow the rows, (B,), that have taken the place of others."""
    for name, value in vars(scheduler).items():
        if isinstance(value, SchedulerMixin):  # the predictor of UniPC
            take_rows(value, rows)
        elif isinstance(value, Tensor | list | tuple):
            setattr(scheduler, name, with_rows(value, rows))


def with_rows(value: Any, rows: Tensor) -> Any:
    """Return tensors of the batch, also in lists, tuples and dictionaries, with the rows of others in each place."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.ndim > 1 and len(value) == len(rows) else value
    if isinstance(value, Mapping):
        taken = {name: with_rows(each, rows) for name, each in value.items()}
        return type(value)(**taken) if all(isinstance(name, str) for name in value) else taken
    return type(value)(with_rows(each, rows) for each in value) if isinstance(value, list | tuple) else value
