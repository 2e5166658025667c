"""Atomic checkpoints that can be saved and resumed with any number of processes.

A checkpoint is one safetensors file of full tensors, sharded ones gathered, under ``module/parameter`` and
``optimizer/index/moment``. Weights and moments are all there is to save: the learning rate, the order of samples and
every random draw of the programs are functions of (seed, step). A stream has a position in each process, and a run in
float16 has a loss scale: both are in the metadata of the same file, so that a kill cannot separate them from the
weights.
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

    Every process makes one of these and calls the same methods; one process writes.

    Args:
        folder: Made when the first checkpoint is written.
        writes: Whether this process is the one that writes.
        keep: How many of the newest checkpoints stay.
    """

    def __init__(self, folder: str | Path, writes: bool = True, keep: int = 2):
        self.folder, self.writes, self.keep = Path(folder), writes, keep
        self.moments: dict[str, Tensor] = {}  # of the loaded checkpoint, until load_moments
        self.stream_positions: list[Any] = []  # one for each process, of the loaded checkpoint
        self.loss_scale: dict[str, Any] | None = None  # its state in the loaded checkpoint
        self.loaded: Path | None = None
        self.best = _metric(self.folder / BEST)

    def save(
        self,
        step: int,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        stream_positions: Sequence[Any] | None = None,
        loss_scale: dict[str, Any] | None = None,
    ) -> None:
        """Write the checkpoint of a step and delete all but the newest ``keep``.

        Args:
            step: Number of steps done.
            modules: Their weights are saved.
            optimizer: Its moments are saved.
            stream_positions: Of each process, ready for JSON.
            loss_scale: State of the loss scale, ready for JSON.

        Raises:
            CheckpointError: The file cannot be written, for example because the disk is full. Earlier checkpoints stay.
        """
        tensors = _weights(modules)
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": _full(value) for key, value in moments.items()}
        if self.writes:
            states = {"places": stream_positions, "loss_scale": loss_scale}
            metadata = {name: json.dumps(state) for name, state in states.items() if state is not None}
            self._write(tensors, self.folder / f"step-{step}.safetensors", metadata)
            for old in self.paths()[: -self.keep]:
                old.unlink()

    def save_best(self, step: int, modules: Mapping[str, nn.Module], metric: float) -> None:
        """Keep weights as ``best.safetensors`` if their metric is higher than that of the file.

        Raises:
            CheckpointError: The file cannot be written.
        """
        if self.best is not None and not metric > self.best:
            return
        self.best, tensors = metric, _weights(modules)
        if self.writes:
            self._write(tensors, self.folder / BEST, {"step": str(step), "metric": repr(metric)})

    def load_weights(self, modules: Mapping[str, nn.Module]) -> int:
        """Load the newest checkpoint that can be read into modules that are not sharded yet.

        Returns:
            The step that the checkpoint was saved after, 0 where there is none.

        Raises:
            CheckpointError: The tensors do not fit the modules, because the checkpoint is from other settings.

        Warns:
            UserWarning: A newer checkpoint is damaged.
        """
        for path in reversed(self.paths()):
            try:
                tensors = load_file(path)
                metadata = _metadata(path)
                self.stream_positions = json.loads(metadata.get("places", "[]"))
                self.loss_scale = json.loads(metadata.get("loss_scale", "null"))
            except (SafetensorError, OSError, ValueError, RecursionError) as error:  # also of its JSON
                told = f"{path} cannot be read ({error}); going back to the one before"
                warnings.warn(told, stacklevel=2)
                continue
            load_weights(tensors, modules, path)
            self.loaded = path
            self.moments = {key: value for key, value in tensors.items() if key.startswith("optimizer/")}
            return _step(path)
        return 0

    def stream_position(self, index: int, count: int) -> Any:
        """Return the stream position of process ``index`` of ``count`` in the loaded checkpoint.

        Raises:
            CheckpointError: The checkpoint has no positions, or those of another number of processes, each of which
                read another share of the stream.
        """
        positions = self.stream_positions
        if len(positions) != count:
            found = f"those of {len(positions)} processes" if positions else "none"
            raise CheckpointError(f"{self.loaded}: expected the stream positions of {count} processes, found {found}")
        return positions[index]

    def load_moments(self, optimizer: torch.optim.Optimizer) -> None:
        """Load the moments of the loaded checkpoint, sharded as the parameters of the optimizer."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in self.moments.items():
            _, index, moment = key.split("/")
            state.setdefault(int(index), {})[moment] = _sharded(value, parameters[int(index)])
        if state:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.moments = {}

    def paths(self) -> list[Path]:
        """List the checkpoint files by step."""
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
    """Load into each module the tensors under its name.

    Raises:
        CheckpointError: They do not fit; says which.
    """
    for name, module in modules.items():
        prefix = f"{name}/"
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise CheckpointError(f"{origin} was saved with other settings: {error}") from error


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Return the state of a module in full tensors on the CPU.

    Where the module is sharded, every process must call this.
    """
    return {key: _full(value) for key, value in module.state_dict().items()}


def _weights(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value for name, module in modules.items() for key, value in full_state_dict(module).items()
    }


def _full(value: Tensor) -> Tensor:
    """Copy a tensor to the CPU; every process takes part in gathering a sharded one."""
    value = value.detach()
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.cpu().contiguous().clone()


def _sharded(value: Tensor, like: Any) -> Tensor:
    """Split a moment as its parameter is split; counters of steps are not split."""
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
