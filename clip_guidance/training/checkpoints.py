"""Checkpoints of a training run: whole or not there, of any number of processes, for any number of processes.

A checkpoint is one safetensors file of full tensors, sharded ones gathered, under ``module/parameter`` and
``optimizer/index/moment``. Weights and moments are all there is to save: the learning rate, the order of samples and
every random draw of the programs are functions of (seed, step). Only a stream has a place, of each process its own, and
a run in float16 its loss scale: they are in the metadata of the same file, so that no kill parts them from the weights.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from clip_guidance._files import write_atomically

BEST = "best.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or does not fit the model."""


class Checkpoints:
    """The checkpoints in a folder, ``step-N.safetensors`` each.

    Every process makes one of these and calls the same methods; one of them writes.

    Args:
        folder: is made when the first one is written.
        writes: whether this process is the one that writes.
        keep: how many are kept, the newest.
    """

    def __init__(self, folder: str | Path, writes: bool = True, keep: int = 2):
        self.folder, self.writes, self.keep = Path(folder), writes, keep
        self.moments: dict[str, Tensor] = {}  # of the checkpoint that was loaded, until they are asked for
        self.places: list[Any] = []  # of each process in its stream, in the checkpoint that was loaded
        self.loss_scale: dict[str, Any] | None = None  # its state in the checkpoint that was loaded
        self.loaded: Path | None = None
        self.best = _metric(self.folder / BEST)

    def save(
        self,
        step: int,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        places: Sequence[Any] | None = None,
        loss_scale: dict[str, Any] | None = None,
    ) -> None:
        """Writes the checkpoint of ``step`` and deletes all but the last ``keep``.

        Args:
            step: number of steps done.
            modules: whose weights are saved.
            optimizer: whose moments are.
            places: of each process in its stream, ready for JSON.
            loss_scale: its state, ready for JSON.

        Raises:
            CheckpointError: it cannot be written, for one because the disk is full. Earlier ones stay as they are.
        """
        tensors = _weights(modules)
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": _full(value) for key, value in moments.items()}
        if self.writes:
            states = {"places": places, "loss_scale": loss_scale}
            metadata = {name: json.dumps(state) for name, state in states.items() if state is not None}
            self._write(tensors, self.folder / f"step-{step}.safetensors", metadata)
            for old in self.paths()[: -self.keep]:
                old.unlink()

    def save_best(self, step: int, modules: Mapping[str, nn.Module], metric: float) -> None:
        """Keeps these weights as ``best.safetensors`` if ``metric`` is higher than that of those there.

        Raises:
            CheckpointError: they cannot be written.
        """
        if self.best is not None and not metric > self.best:
            return
        self.best, tensors = metric, _weights(modules)
        if self.writes:
            self._write(tensors, self.folder / BEST, {"step": str(step), "metric": repr(metric)})

    def load_weights(self, modules: Mapping[str, nn.Module]) -> int:
        """Loads the newest checkpoint that can be read into modules that are not sharded yet.

        Returns:
            The step it was saved after, 0 where there is none.

        Raises:
            CheckpointError: its tensors do not fit the modules: it is from other settings.

        Warns:
            UserWarning: a newer one is damaged.
        """
        for path in reversed(self.paths()):
            try:
                tensors = load_file(path)
                metadata = _metadata(path)
                self.places = json.loads(metadata.get("places", "[]"))
                self.loss_scale = json.loads(metadata.get("loss_scale", "null"))
            except (SafetensorError, OSError) as error:
                warnings.warn(f"{path} cannot be read ({error}); going back to the one before", stacklevel=2)
                continue
            load_weights(tensors, modules, path)
            self.loaded = path
            self.moments = {key: value for key, value in tensors.items() if key.startswith("optimizer/")}
            return _step(path)
        return 0

    def place(self, index: int, count: int) -> Any:
        """The place of process ``index`` of ``count`` in its stream, in the checkpoint that was loaded.

        Raises:
            CheckpointError: it has none, or those of another number of processes, which shared the stream otherwise.
        """
        if len(self.places) != count:
            found = f"of {len(self.places)} processes" if self.places else "no place in a stream"
            raise CheckpointError(f"{self.loaded}: expected the places of {count} processes in a stream, found {found}")
        return self.places[index]

    def load_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Gives an optimizer the moments of the checkpoint that was loaded, sharded as its parameters are."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in self.moments.items():
            _, index, moment = key.split("/")
            state.setdefault(int(index), {})[moment] = _sharded(value, parameters[int(index)])
        if state:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.moments = {}

    def paths(self) -> list[Path]:
        """Of the checkpoints there are, by step."""
        return sorted(self.folder.glob("step-*.safetensors"), key=_step)

    def _write(self, tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with write_atomically(path) as partial:
                save_file(tensors, partial, metadata)
        except (OSError, SafetensorError) as error:
            last = self.paths()[-1].name if self.paths() else "none"
            raise CheckpointError(f"cannot write {path} ({error}); the last whole checkpoint is {last}") from error


def load_weights(tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], origin: Path) -> None:
    """Into each module the tensors under its name.

    Raises:
        CheckpointError: they do not fit; says which.
    """
    for name, module in modules.items():
        prefix = f"{name}/"
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise CheckpointError(f"{origin} was saved with other settings: {error}") from error


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module in full tensors on the CPU; of a sharded one every process must ask for it."""
    return {key: _full(value) for key, value in module.state_dict().items()}


def _weights(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value for name, module in modules.items() for key, value in full_state_dict(module).items()
    }


def _full(value: Tensor) -> Tensor:
    """The whole of a tensor, of its own memory; a sharded one is gathered, which every process takes part in."""
    value = value.detach()
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.cpu().contiguous().clone()


def _sharded(value: Tensor, like: Any) -> Tensor:
    """``value`` split as the parameter it belongs to; counters of steps are not split."""
    if isinstance(like, DTensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


def _metric(path: Path) -> float | None:
    return float(_metadata(path)["metric"]) if path.is_file() else None


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
