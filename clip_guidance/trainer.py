"""What the training programs share: settings and the loop; batches are in :mod:`clip_guidance.batches`.

A program has one frozen dataclass of settings. It is filled from a YAML recipe (``--config``) and the command line,
which wins.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from clip_guidance.batches import SampleOrder as SampleOrder
from clip_guidance.batches import batches as batches
from clip_guidance.checkpoints import Checkpoints
from clip_guidance.launch import check_launch
from clip_guidance.loss_scale import LossScale
from clip_guidance.parameter_groups import parameter_groups
from clip_guidance.progress import Progress
from clip_guidance.schedule import learning_rate as learning_rate
from clip_guidance.schedule import warmup_steps
from clip_guidance.training_log import Log

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


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train, and what to write down on the way.

    Attributes:
        warmup: steps, or below 1 the share of all steps, in which the learning rate rises.
        weight_decay: of matrices and kernels, see :mod:`clip_guidance.parameter_groups`.
        best: what ``after_step`` returns by this name chooses the weights kept as ``best.safetensors``: higher is
            better.
        layer_decay: in (0, 1]; below 1 a block's learning rate is this times that of the block behind it.
        batch_size: samples a step of all processes together, to show how many a second; 0 where it is not known.

    Raises:
        ValueError: ``warmup`` is neither a share nor a number of steps.
    """

    steps: int
    learning_rate: float
    warmup: float
    weight_decay: float
    max_grad_norm: float
    seed: int
    log_every: int
    save_every: int
    best: str | None = None
    layer_decay: float = 1.0
    batch_size: int = 0

    def __post_init__(self) -> None:
        warmup_steps(self.warmup, self.steps)


def make_accelerator(
    report_to: Sequence[Any] = (), folder: str | Path | None = None, settings: Any = None, **options: Any
) -> Accelerator:
    """Of this launch: on the CPU where there is nothing else, with as many processes as ``torchrun`` started.

    ``accelerate launch --cpu`` starts one, whatever ``--num_processes`` says.

    Args:
        report_to: trackers that get the rows of the log: names that accelerate knows ("tensorboard", "wandb", ...) or
            its ``GeneralTracker``. They are closed by the accelerator's ``end_training``.
        folder: for those that write files.
        settings: dataclass of the run, told to the trackers.

    Raises:
        ValueError: a tracker is unknown, or its package is not installed; or the launch asks for what would be another
            training than it says, see :func:`check_launch`.
    """
    installed = [str(tracker) for tracker in get_available_trackers()]
    if missing := [name for name in report_to if isinstance(name, str) and name not in installed]:
        known = ", ".join(installed) or "none is"
        raise ValueError(f"report_to: expected trackers that are installed ({known}), got {', '.join(missing)}")
    if report_to:
        options |= {"log_with": list(report_to), "project_dir": folder}
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), **options)
    check_launch(accelerator)
    if not report_to:
        return accelerator
    values = {} if settings is None else asdict(settings)
    plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in values.items()}
    accelerator.init_trackers("clip_guidance", config=plain)
    return accelerator


class Stateful(Protocol):
    """What is saved with a checkpoint, a state for each process, because it is no function of (seed, step)."""

    def state_dict(self) -> dict[str, Any]:
        """Its present state, ready for JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state."""


class NonFiniteLossError(RuntimeError):
    """The loss was inf or nan: training was stopped before it could spoil the weights."""


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
    describe: Callable[[int], Any] | None = None,
    stream: Stateful | None = None,
    make_optimizer: Callable[[list[dict[str, Any]], float], torch.optim.Optimizer] | None = None,
) -> None:
    """AdamW on ``loss(model, step)["loss"]`` from the newest checkpoint in ``folder`` up to ``plan.steps``.

    Before each step the random state is set from (seed, step, process), so a resumed run draws what an uninterrupted
    one would have drawn.

    In float16 a step whose gradients overflow is skipped (:mod:`clip_guidance.loss_scale`): it has its place in the
    schedule and its batch as any other, and leaves weights, moments and their average as they are.

    Args:
        loss: given the prepared model and the step number; its other entries are logged beside the loss.
        ema: an average of ``model`` to update after each step, saved with it.
        after_step: called on every process with the number of steps done; what it returns is logged.
        describe: the batch of a step as JSON, written to ``non-finite.json`` where the loss was.
        stream: where ``loss`` takes its batches from, if that has a place to go on from.
        make_optimizer: of groups of parameters and a learning rate, in place of AdamW; its state is tensors alone.

    Raises:
        NonFiniteLossError: the loss or a gradient is inf or nan, by no fault of a loss scale; the last checkpoint is
            from before it.
        CheckpointError: a checkpoint cannot be written (the last one stays whole) or does not fit the model.
    """
    _check(accelerator, ema)
    modules: dict[str, nn.Module] = {"model": model} | ({"ema": ema} if ema is not None else {})
    groups = parameter_groups(model, plan.weight_decay, plan.layer_decay)
    optimizer = (make_optimizer or _adamw)(groups, plan.learning_rate)
    checkpoints = Checkpoints(folder / "checkpoints", accelerator.is_main_process)
    loss_scale = LossScale(accelerator)
    start = checkpoints.load_weights(modules)  # before they are sharded, the moments after
    loss_scale.load_state_dict(checkpoints.loss_scale)
    if start and stream is not None:
        stream.load_state_dict(checkpoints.place(accelerator.process_index, accelerator.num_processes))
    log = Log(folder / "log.jsonl", enabled=accelerator.is_main_process)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    checkpoints.load_moments(optimizer)
    began = time.monotonic()
    with Progress(phase, start, plan.steps, plan.batch_size, accelerator.is_main_process) as progress:
        for step in range(start, plan.steps):
            values = _one_step(accelerator, prepared, optimizer, loss_scale, loss, plan, step, folder, describe)
            if ema is not None and not optimizer.step_was_skipped:
                ema.update_parameters(model)
            done = step + 1
            found = after_step(done) if after_step is not None else {}
            progress.advance()
            if found or done % plan.log_every == 0 or done == plan.steps:
                row = {name: value.item() for name, value in values.items()} | found
                log.write(phase=phase, step=done, seconds=time.monotonic() - began, **row)
                accelerator.log({f"{phase}/{name}".lstrip("/"): value for name, value in row.items()}, step=done)
                progress.show({name: value for name, value in row.items() if not name.endswith(("_low", "_high"))})
            if plan.best in found:
                checkpoints.save_best(done, {"model": model if ema is None else ema.module}, found[plan.best])
            if done % plan.save_every == 0 or done == plan.steps:
                places = None if stream is None else gather_object([stream.state_dict()])
                checkpoints.save(done, modules, optimizer, places, loss_scale.state_dict())


def _adamw(groups: list[dict[str, Any]], peak: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))


def _one_step(
    accelerator: Accelerator,
    prepared: nn.Module,
    optimizer: AcceleratedOptimizer,
    loss_scale: LossScale,
    loss: Callable[[nn.Module, int], dict[str, Tensor]],
    plan: Plan,
    step: int,
    folder: Path,
    describe: Callable[[int], Any] | None,
) -> dict[str, Tensor]:
    """One step of AdamW; what ``loss`` returned, and ``grad_norm``, that of the gradient before it was clipped.

    In float16 also the ``loss_scale`` that it was computed with; a step that was skipped has no ``grad_norm``.
    """
    torch.manual_seed((plan.seed * 1_000_003 + step) * 1_009 + accelerator.process_index)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, plan.steps, plan.learning_rate, plan.warmup) * group["lr_scale"]
    with accelerator.autocast():
        values = loss(prepared, step)
    accelerator.backward(values["loss"])
    norm = accelerator.clip_grad_norm_(prepared.parameters(), plan.max_grad_norm)  # of gradients without the scale
    if not norm.isfinite() and loss_scale.may_overflow(values["loss"]):
        loss_scale.skipped_steps += 1
        values = values | loss_scale.figures()
    else:
        _stop_if_not_finite(values["loss"], norm, step, folder, describe, accelerator)
        values = values | {"grad_norm": norm} | loss_scale.figures()
    optimizer.step()  # not taken where a gradient overflowed; then the scale is adjusted
    optimizer.zero_grad()
    return values


def _check(accelerator: Accelerator, ema: AveragedModel | None) -> None:
    check_launch(accelerator)
    if ema is not None and getattr(accelerator, "is_fsdp2", False):
        raise ValueError("an average of the weights (EMA) is not supported under FSDP2")


def _stop_if_not_finite(
    value: Tensor,
    norm: Tensor,
    step: int,
    folder: Path,
    describe: Callable[[int], Any] | None,
    accelerator: Accelerator,
) -> None:
    """A gradient that is not finite would make every weight so; the loss of a step is the same on every process."""
    if value.isfinite() and norm.isfinite():
        return
    scale = "" if accelerator.scaler is None else f" at a loss scale of {accelerator.scaler.get_scale():g}"
    path = folder / "non-finite.json"
    if describe is not None and accelerator.is_main_process:
        found = {"step": step, "loss": repr(value.item()), "grad_norm": repr(norm.item()), "batch": describe(step)}
        path.write_text(json.dumps(found, indent=2) + "\n")
    where = f"; its batch is in {path}" if describe is not None else ""
    raise NonFiniteLossError(f"step {step}: loss {value.item():g}, gradient norm {norm.item():g}{scale}{where}")


def save_settings(settings: Any, path: Path) -> None:
    """Writes the settings beside what they made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(settings), indent=2, default=str) + "\n")
