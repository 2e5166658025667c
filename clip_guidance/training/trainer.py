"""The training loop: an optimizer, AdamW by default, from the newest checkpoint to the end of the plan."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from clip_guidance.metrics.job.processes import LostProcessError
from clip_guidance.training.checkpoints import CheckpointError, Checkpoints
from clip_guidance.training.launch import check_launch, lost_connection
from clip_guidance.training.log import Log
from clip_guidance.training.loss_scale import LossScale
from clip_guidance.training.optimizer import learning_rate, parameter_groups, warmup_steps
from clip_guidance.training.progress import Progress

Loss = Callable[[nn.Module, int], dict[str, Tensor]]
MakeOptimizer = Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train, and what to write down on the way.

    Attributes:
        steps: Optimizer steps in all.
        learning_rate: The highest one, after the warm-up.
        warmup: Steps, or below 1 the share of all steps, in which the learning rate rises.
        weight_decay: Of matrices and kernels, see :mod:`clip_guidance.training.optimizer`.
        max_grad_norm: Longer gradients are scaled down to this norm.
        seed: Of all random draws of the steps.
        log_every: Steps from one row of the log to the next.
        save_every: Steps from one checkpoint to the next.
        best_metric: Name of a value that ``after_step`` returns; the weights for which it was highest are kept as
            ``best.safetensors``. None keeps none.
        layer_decay: In (0, 1]; below 1 a block's learning rate is this times that of the block behind it.
        batch_size: Samples per step of all processes together, to show samples per second; 0 shows steps per second.

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
    best_metric: str | None = None
    layer_decay: float = 1.0
    batch_size: int = 0

    def __post_init__(self) -> None:
        warmup_steps(self.warmup, self.steps)

    @classmethod
    def of(cls, settings: Any, steps: int, learning_rate: float, batch_size: int) -> Plan:
        """Make a plan of a program's settings, whose fields have the names of the attributes."""
        names = ("warmup", "weight_decay", "max_grad_norm", "seed", "log_every", "save_every")
        named = {name: getattr(settings, name) for name in names}
        return cls(steps, learning_rate, batch_size=batch_size, **named)


class Stateful(Protocol):
    """A source of batches with a position that checkpoints hold, for each process."""

    def state_dict(self) -> dict[str, Any]:
        """Return the present state, ready for JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""


class NonFiniteLossError(RuntimeError):
    """The loss or a gradient was inf or nan: training was stopped before the weights became so."""


def make_adamw(groups: list[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
    """Make the optimizer that :func:`fit` uses by default."""
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))


def fit(
    accelerator: Accelerator,
    model: nn.Module,
    loss: Loss,
    plan: Plan,
    folder: Path,
    *,
    phase: str = "",
    ema_model: AveragedModel | None = None,
    after_step: Callable[[int], dict[str, float]] | None = None,
    describe: Callable[[int], Any] | None = None,
    stream: Stateful | None = None,
    make_optimizer: MakeOptimizer = make_adamw,
) -> None:
    """Train a model from the newest checkpoint in a folder up to ``plan.steps``.

    Before each step the random state is set from (seed, step, process), so a resumed run draws what an uninterrupted
    one would have drawn.

    In float16 a step whose gradients overflow is skipped (:mod:`clip_guidance.training.loss_scale`): the step uses up
    its place in the schedule and its batch as any other, and leaves weights, moments and averages as they are.

    Args:
        accelerator: Of this launch.
        model: What is trained; not yet prepared by the accelerator.
        loss: Called with the prepared model and the number of the step. Of what it returns "loss" is minimised; the
            other entries are logged beside it.
        plan: How long and how fast to train.
        folder: Gets ``log.jsonl``, the folder ``checkpoints``, and ``non-finite.json`` where the loss was not finite.
        phase: Written into each row of the log.
        ema_model: An average of ``model``, updated after each step and saved with it.
        after_step: Called on every process with the number of steps done; its values are logged.
        describe: Returns the batch of a step as JSON, for ``non-finite.json``.
        stream: Where ``loss`` takes its batches from, if that has a position to continue from.
        make_optimizer: Called with groups of parameters and the learning rate; AdamW by default. Checkpoints hold the
            state of any optimizer whose state is tensors alone.

    Raises:
        NonFiniteLossError: The loss or a gradient is inf or nan, and no loss scale is to blame; the last checkpoint is
            from before.
        CheckpointError: A checkpoint cannot be written (the last one stays whole) or does not fit the model; or the
            processes found different ones, because their machines do not share the folder.
        LostProcessError: Another process ended; says which steps are lost.
        ValueError: The launch or its combination with ``ema_model`` is not supported.
    """
    check_launch(accelerator)
    if ema_model is not None and getattr(accelerator, "is_fsdp2", False):
        raise ValueError("an average of the weights (EMA) is not supported under FSDP2")
    extras = (phase, ema_model, after_step, describe, stream, make_optimizer)
    run = _Run(accelerator, model, loss, plan, folder, *extras)
    try:
        run.train()
    except RuntimeError as error:
        if lost_connection(error):
            raise run.lost_process() from error
        raise


@dataclass
class _Run:
    """One call of :func:`fit`, whose arguments are the attributes."""

    accelerator: Accelerator
    model: nn.Module
    loss: Loss
    plan: Plan
    folder: Path
    phase: str
    ema_model: AveragedModel | None
    after_step: Callable[[int], dict[str, float]] | None
    describe: Callable[[int], Any] | None
    stream: Stateful | None
    make_optimizer: MakeOptimizer
    saved: int = field(default=0, init=False)  # steps that the newest checkpoint holds
    begun: int = field(default=0, init=False)  # number of the step that is taken

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.folder / "checkpoints", self.accelerator.is_main_process)
        self.loss_scale = LossScale(self.accelerator)
        self.log = Log(self.folder / "log.jsonl", enabled=self.accelerator.is_main_process)
        self.modules: dict[str, nn.Module] = {"model": self.model}
        if self.ema_model is not None:
            self.modules["ema"] = self.ema_model

    def train(self) -> None:
        """Take the steps that are left; log and save on the way."""
        plan, start = self.plan, self.resume()
        began = time.monotonic()
        with Progress(self.phase, start, plan.steps, plan.batch_size, self.accelerator.is_main_process) as progress:
            for done in range(start + 1, plan.steps + 1):
                self.begun = done
                values = self.step(done - 1)
                if self.ema_model is not None and not self.optimizer.step_was_skipped:
                    self.ema_model.update_parameters(self.model)
                found = self.after_step(done) if self.after_step is not None else {}
                progress.advance()
                if found or done % plan.log_every == 0 or done == plan.steps:
                    row = {name: value.item() for name, value in values.items()} | found
                    self.write(done, time.monotonic() - began, row)
                    progress.show({name: value for name, value in row.items() if not name.endswith(("_low", "_high"))})
                if plan.best_metric in found:
                    best = self.model if self.ema_model is None else self.ema_model.module
                    self.checkpoints.save_best(done, {"model": best}, found[plan.best_metric])
                if done % plan.save_every == 0 or done == plan.steps:
                    positions = None if self.stream is None else gather_object([self.stream.state_dict()])
                    self.checkpoints.save(done, self.modules, self.optimizer, positions, self.loss_scale.state_dict())
                    self.saved = done

    def resume(self) -> int:
        """Load the newest checkpoint, prepare everything, and return the number of steps done."""
        groups = parameter_groups(self.model, self.plan.weight_decay, self.plan.layer_decay)
        optimizer = self.make_optimizer(groups, self.plan.learning_rate)
        done = self.checkpoints.load_weights(self.modules)  # before they are sharded; the moments after
        if len(set(found := gather_object([done]))) > 1:
            steps = ", ".join(map(str, found))
            raise CheckpointError(
                f"{self.checkpoints.folder}: the processes found checkpoints of different steps ({steps}); the output "
                "must be a folder that all machines see"
            )
        self.saved = self.begun = done
        self.loss_scale.load_state_dict(self.checkpoints.loss_scale)
        if done and self.stream is not None:
            process, processes = self.accelerator.process_index, self.accelerator.num_processes
            self.stream.load_state_dict(self.checkpoints.stream_position(process, processes))
        self.prepared, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.checkpoints.load_moments(self.optimizer)
        return done

    def lost_process(self) -> LostProcessError:
        """Make the error that says what is lost with another process."""
        since = f"the checkpoint of step {self.saved}" if self.saved else "the beginning"
        count, steps = self.accelerator.num_processes, self.plan.steps
        return LostProcessError(
            f"another of the {count} processes ended in step {self.begun} of {steps}: "
            f"what was learnt since {since} is lost; the same command on all machines goes on from there"
        )

    def step(self, step: int) -> dict[str, Tensor]:
        """Take one step and return its values.

        They are those of ``loss``, and ``grad_norm``, the norm of the gradient before it was clipped. In float16 there
        is also the ``loss_scale`` of the step; a skipped step has no ``grad_norm``.
        """
        accelerator, plan, loss_scale = self.accelerator, self.plan, self.loss_scale
        torch.manual_seed((plan.seed * 1_000_003 + step) * 1_009 + accelerator.process_index)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, plan.steps, plan.learning_rate, plan.warmup) * group["lr_scale"]
        with accelerator.autocast():
            values = self.loss(self.prepared, step)
        accelerator.backward(values["loss"])
        norm = accelerator.clip_grad_norm_(self.prepared.parameters(), plan.max_grad_norm)  # without the loss scale
        if not norm.isfinite() and loss_scale.may_overflow(values["loss"]):
            loss_scale.skipped_steps += 1
            values = values | loss_scale.metrics()
        else:
            self.stop_if_not_finite(values["loss"], norm, step)
            values = values | {"grad_norm": norm} | loss_scale.metrics()
        self.optimizer.step()  # is skipped where a gradient overflowed; then the scale is adjusted
        self.optimizer.zero_grad()
        return values

    def stop_if_not_finite(self, loss: Tensor, norm: Tensor, step: int) -> None:
        """Raise before a gradient that is not finite reaches the weights."""
        if loss.isfinite() and norm.isfinite():
            return
        scaler, path = self.accelerator.scaler, self.folder / "non-finite.json"
        scale = "" if scaler is None else f" at a loss scale of {scaler.get_scale():g}"
        where = ""
        if self.describe is not None:
            where = f"; its batch is in {path}"
            if self.accelerator.is_main_process:
                found = {"step": step, "loss": repr(loss.item()), "grad_norm": repr(norm.item())}
                path.write_text(json.dumps(found | {"batch": self.describe(step)}, indent=2) + "\n")
        raise NonFiniteLossError(f"step {step}: loss {loss.item():g}, gradient norm {norm.item():g}{scale}{where}")

    def write(self, done: int, seconds: float, row: dict[str, float]) -> None:
        """Write a row to the log and to the trackers."""
        self.log.write(phase=self.phase, step=done, seconds=seconds, **row)
        self.accelerator.log({f"{self.phase}/{name}".lstrip("/"): value for name, value in row.items()}, step=done)
