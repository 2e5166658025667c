"""Which launches are refused, because they would be another training than they say."""

from __future__ import annotations

import os

import accelerate
import torch.distributed as dist
from accelerate import Accelerator


def check_launch(accelerator: Accelerator) -> None:
    """Refuses what would be another training than asked for; some of it accelerate leaves out without a word.

    Raises:
        ValueError: says what was asked for, and what to use instead.
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
