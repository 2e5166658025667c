"""The accelerator of a launch, and the launches that are refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import accelerate
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object

PLACES = ("data", "output")  # settings that machines may spell differently: where they have mounted what is shared


class DisagreementError(ValueError):
    """The processes were started with different settings, or read different data."""


def make_accelerator(
    report_to: Sequence[Any] = (), folder: str | Path | None = None, settings: Any = None, **options: Any
) -> Accelerator:
    """Make the accelerator of this launch, on the CPU where there is no other device.

    It has as many processes as ``torchrun`` started; ``accelerate launch --cpu`` starts one, whatever
    ``--num_processes`` says.

    Args:
        report_to: Trackers that get the rows of the log: names that accelerate knows ("tensorboard", "wandb", ...) or
            its ``GeneralTracker``. The accelerator's ``end_training`` closes them.
        folder: Where trackers put their files.
        settings: Dataclass of the run, told to the trackers.
        options: Passed to ``Accelerator``.

    Raises:
        ValueError: A tracker is unknown, or its package is not installed; or :func:`check_launch` refuses the launch.
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


def check_launch(accelerator: Accelerator) -> None:
    """Refuse a launch that would train something else than it asks for.

    Some of what is refused accelerate would ignore silently.

    Raises:
        ValueError: Says what was asked for, and what to use instead.
    """
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            "gradient accumulation is not supported: it would not enlarge the batch of negatives; chunks of a large "
            "batch do (chunk_size)"
        )
    launched = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if launched != accelerator.num_processes:
        raise ValueError(f"{launched} processes were launched and accelerate knows {accelerator.num_processes}")
    device, kind = accelerator.device.type, accelerator.distributed_type.value
    if launched > 1 and kind != "FSDP" and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise ValueError(
            f"FSDP was asked for, and accelerate {accelerate.__version__} does not shard on the {device}: it would run "
            f"as {kind}, with all weights on every process; launch it without FSDP"
        )
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU") and not getattr(accelerator, "is_fsdp2", False):
        raise ValueError(f"expected one process, data parallelism or FSDP2, got {kind}")
    if accelerator.mixed_precision == "fp16" and kind == "FSDP":
        raise ValueError(
            'mixed precision "fp16" is not supported under FSDP2: where a shard of a gradient overflows, every process '
            'must skip the step, which is not tested; use "bf16" or "no"'
        )


def check_agreement(settings: Any, **facts: Any) -> None:
    """Refuse to train where the processes, on several machines say, were told or have read different things.

    Every process must call this. Weights would be averaged over different losses or vocabularies, without an error.

    Args:
        settings: Dataclass of the run; where data and output lie may differ.
        facts: What each process has found, by name.

    Raises:
        DisagreementError: Something differs from what the first process has; says what, and where.
    """
    told = {name: value for name, value in asdict(settings).items() if name not in PLACES} | facts
    first, *others = gather_object([told])
    for process, other in enumerate(others, 1):
        for name, value in first.items():
            if other[name] != value:
                raise DisagreementError(
                    f"{name}: process 0 has {value!r:.40}, process {process} has {other[name]!r:.40}; all machines "
                    "must get the same settings and see the same data"
                )


def lost_connection(error: RuntimeError) -> bool:
    """Say whether an error tells that another process cannot be reached any more.

    Gloo raises plain RuntimeErrors, which name its files.
    """
    return dist.is_available() and (isinstance(error, dist.DistError) or "gloo/transport" in str(error))
