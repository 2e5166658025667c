"""What the training programs share: settings, the order of samples, the loop, the log, checkpoints.

A program has one frozen dataclass of settings. It is filled from a YAML recipe (``--config``) and the command line,
which wins. The order of samples is a function of (seed, step), so a resumed run continues with the very next batch.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

Settings = TypeVar("Settings")


def parse_settings(cls: type[Settings], argv: Sequence[str] | None = None) -> Settings:
    """Fills the dataclass ``cls`` from ``--config recipe.yaml`` and the other options; the command line wins.

    Raises:
        SystemExit: an unknown option or recipe key, named in the message.
    """
    from transformers import HfArgumentParser

    recipes = argparse.ArgumentParser(add_help=False)
    recipes.add_argument("--config", type=Path, help="YAML recipe with any of the options below")
    given, rest = recipes.parse_known_args(argv)
    parser = HfArgumentParser(cls, parents=[recipes])
    if given.config is not None:
        _use_recipe(parser, given.config, {field.name for field in fields(cls)})  # type: ignore[arg-type]
    values = vars(parser.parse_args(rest))
    values.pop("config")
    return cls(**values)


def _use_recipe(parser: argparse.ArgumentParser, path: Path, names: set[str]) -> None:
    """Makes the recipe's values the parser's defaults."""
    import yaml

    if not path.is_file():
        parser.error(f"no recipe at {path}")
    recipe = yaml.safe_load(path.read_text()) or {}
    if unknown := set(recipe) - names:
        parser.error(f"{path}: unknown settings {sorted(unknown)}; known are {sorted(names)}")
    parser.set_defaults(**recipe)
    for action in parser._actions:
        action.required = action.required and action.dest not in recipe


def batches(count: int, batch_size: int, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Endless batches of indices below ``count``: a new permutation each epoch, the short last batch dropped.

    Yields:
        int64 tensors (batch_size,), beginning with batch number ``start`` of the same endless sequence.
    """
    if batch_size > count:
        raise ValueError(f"batch_size {batch_size} exceeds the {count} samples there are")
    per_epoch = count // batch_size
    epoch, first = divmod(start, per_epoch)
    while True:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        for i in range(first, per_epoch):
            yield order[i * batch_size : (i + 1) * batch_size]
        epoch, first = epoch + 1, 0


class Log:
    """One JSON object a line, appended and flushed: survives a kill, read by :func:`read_log` and :func:`plot_log`."""

    def __init__(self, path: str | Path, enabled: bool = True):
        self.path, self.enabled = Path(path), enabled
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **values: Any) -> None:
        if self.enabled:
            with self.path.open("a") as file:
                file.write(json.dumps(values) + "\n")


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a log; of a step logged twice (before and after a resume) the later row."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for line in Path(path).read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # cut off by a kill
            continue
        rows[row.get("phase", ""), row["step"]] = rows.get((row.get("phase", ""), row["step"]), {}) | row
    return list(rows.values())


def plot_log(path: str | Path, output: str | Path) -> None:
    """Draws every number in the log against the step, one panel a name."""
    from matplotlib.figure import Figure

    rows = read_log(path)
    names = sorted({k for row in rows for k, v in row.items() if isinstance(v, int | float) and k != "step"})
    figure = Figure(figsize=(4 * len(names), 3), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for phase in {row.get("phase", "") for row in rows}:
            points = [(row["step"], row[name]) for row in rows if name in row and row.get("phase", "") == phase]
            if points:
                axis.plot(*zip(*points, strict=True), label=phase)
        axis.set(title=name, xlabel="step")
    figure.savefig(output)


class SampleOrder:
    """This process's share of the indices of batch number ``step``; free when asked in order, as :func:`fit` does.

    Args:
        count: number of samples.
        batch_size: samples a process and step.
        seed: of the permutations.
    """

    def __init__(self, count: int, batch_size: int, seed: int, accelerator: Accelerator):
        self.count, self.global_batch_size, self.seed = count, batch_size * accelerator.num_processes, seed
        self.share = slice(accelerator.process_index, None, accelerator.num_processes)
        self.next_step, self.batches = -1, batches(count, self.global_batch_size, seed)

    def __call__(self, step: int) -> Tensor:
        if step != self.next_step:
            self.batches = batches(self.count, self.global_batch_size, self.seed, start=step)
        self.next_step = step + 1
        return next(self.batches)[self.share]


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train, and what to write down on the way."""

    steps: int
    learning_rate: float
    warmup: int
    weight_decay: float
    max_grad_norm: float
    seed: int
    log_every: int
    save_every: int


def fit(
    accelerator: Accelerator,
    model: nn.Module,
    loss: Callable[[nn.Module, int], dict[str, Tensor]],
    plan: Plan,
    folder: Path,
    *,
    phase: str = "",
    ema: AveragedModel | None = None,
    after_step: Callable[[int], dict[str, float]] | None = None,
) -> None:
    """AdamW on ``loss(model, step)["loss"]`` from the newest checkpoint in ``folder`` up to ``plan.steps``.

    Before each step the random state is set from (seed, step, process), so a resumed run draws what an uninterrupted
    one would have drawn.

    Args:
        loss: given the prepared model and the step number; its other entries are logged beside the loss.
        ema: an average of ``model`` to update after each step, saved with it.
        after_step: called with the number of steps done; what it returns is logged.
    """
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError("gradient accumulation is not supported: it would not enlarge the batch of negatives")
    if accelerator.mixed_precision == "fp16":
        raise ValueError('mixed precision "fp16" is not supported (its loss scale is not saved); use "bf16" or "no"')
    if accelerator.distributed_type.value not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise ValueError(f"expected one process or data parallelism, got {accelerator.distributed_type.value}")
    modules: dict[str, nn.Module] = {"model": model} | ({"ema": ema} if ema is not None else {})
    optimizer = torch.optim.AdamW(parameter_groups(model, plan.weight_decay), lr=plan.learning_rate, betas=(0.9, 0.98))
    start = resume(folder / "checkpoints", modules, optimizer)
    log = Log(folder / "log.jsonl", enabled=accelerator.is_main_process)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    began = time.monotonic()
    steps = tqdm(range(start, plan.steps), phase, disable=not accelerator.is_main_process)
    for step in steps:
        torch.manual_seed((plan.seed * 1_000_003 + step) * 1_009 + accelerator.process_index)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, plan.steps, plan.learning_rate, plan.warmup)
        with accelerator.autocast():
            values = loss(prepared, step)
        accelerator.backward(values["loss"])
        norm = accelerator.clip_grad_norm_(model.parameters(), plan.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.update_parameters(model)
        done = step + 1
        found = after_step(done) if after_step is not None else {}
        if found or done % plan.log_every == 0 or done == plan.steps:
            row = {name: value.item() for name, value in values.items()}
            log.write(phase=phase, step=done, seconds=time.monotonic() - began, grad_norm=norm.item(), **row, **found)
            steps.set_postfix({name: f"{value:.4g}" for name, value in (row | found).items()})
        if (done % plan.save_every == 0 or done == plan.steps) and accelerator.is_main_process:
            save_checkpoint(folder / "checkpoints", done, modules, optimizer)


def learning_rate(step: int, total: int, peak: float, warmup: int) -> float:
    """Linear warm-up to ``peak``, then half a cosine down to zero at ``total`` (SGDR, arXiv:1608.03983, eq. 5)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels only: norms, biases and the temperature are left alone."""
    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim >= 2]
    kept = [p for p in module.parameters() if p.requires_grad and p.ndim < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def save_checkpoint(
    folder: Path, step: int, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, keep: int = 2
) -> None:
    """Writes ``folder/step-N.safetensors`` whole or not at all, and keeps the last ``keep`` of them.

    Weights and optimizer moments are all there is to save: the learning rate and every random draw of the programs
    are functions of (seed, step).
    """
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in moments.items()}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "partial.safetensors"  # renamed when complete, so a kill cannot leave half a checkpoint
    save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()}, partial)
    partial.rename(folder / f"step-{step}.safetensors")
    for old in _checkpoints(folder)[:-keep]:
        old.unlink()


def resume(folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> int:
    """Loads the newest checkpoint in ``folder``; returns the step it was saved after, 0 where there is none.

    Raises:
        RuntimeError: the checkpoint's tensors do not fit the modules (other settings than those it was saved with).
    """
    found = _checkpoints(folder)
    if not found:
        return 0
    tensors = load_file(found[-1])
    for name, module in modules.items():
        prefix = f"{name}/"
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, moment = key.split("/")
            state.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return _step(found[-1])


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), key=_step)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def save_settings(settings: Any, path: Path) -> None:
    """Writes the settings beside what they made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(settings), indent=2, default=str) + "\n")
