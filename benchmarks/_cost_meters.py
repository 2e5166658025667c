"""Seconds and memory of one sampling step, whatever pipeline takes it."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

Run = Callable[[int], None]  # samples with that many inference steps


class Enough(Exception):
    """Ends a run at the beginning of a step."""


def sample(denoiser: nn.Module, run: Run, steps: int, at_start: Callable[[int], None]) -> None:
    """Call ``at_start(i)`` at the beginning of steps 0 to ``steps``, and end the run there."""
    seen: list[Any] = []

    def mark(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        if seen and timestep is seen[-1]:
            return  # the community pipeline's second call of a step; comparing values would wait for the GPU
        at_start(len(seen))
        seen.append(timestep)
        if len(seen) > steps:
            raise Enough

    handle = denoiser.register_forward_pre_hook(mark, with_kwargs=True)
    try:
        run(steps + 1)
    except Enough:
        return
    finally:
        handle.remove()
    raise RuntimeError(f"expected {steps + 1} steps, the denoiser was called at {len(seen)} timesteps")


def step_seconds(denoiser: nn.Module, run: Run, steps: int) -> float:
    """Measure the seconds per step, over ``steps`` steps; on the CPU those of all threads together."""
    on_gpu = next(denoiser.parameters()).is_cuda
    marks: list[float] = []

    def at_start(step: int) -> None:
        if step in (0, steps):
            if on_gpu:
                torch.cuda.synchronize()
            marks.append(time.perf_counter() if on_gpu else time.process_time())

    sample(denoiser, run, steps, at_start)
    began, ended = marks
    return (ended - began) / steps


def step_peak_bytes(denoiser: nn.Module, run: Run) -> int:
    """Peak of the bytes given out during two steps, above what was held before."""
    meter = CudaMeter() if next(denoiser.parameters()).is_cuda else CpuMeter()
    gc.collect()
    sample(denoiser, run, 2, lambda step: meter.start() if step == 0 else meter.stop() if step == 2 else None)
    return meter.peak


class CudaMeter:
    """Peak of what the caching allocator has given out since :meth:`start`."""

    peak = 0

    def start(self) -> None:
        torch.cuda.reset_peak_memory_stats()
        self.peak = -torch.cuda.memory_allocated()

    def stop(self) -> None:
        self.peak += torch.cuda.max_memory_allocated()


class CpuMeter:
    """Measure the CPU's allocator, from the profiler's record of what it gave out and took back."""

    peak = 0

    def start(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self._profile.start()

    def stop(self) -> None:
        self._profile.stop()
        events = self._profile.profiler.kineto_results.events()  # type: ignore[union-attr]
        changes = sorted((e.start_ns(), i, e.nbytes()) for i, e in enumerate(events) if e.name() == "[memory]")
        self.peak = max(itertools.accumulate(change for _, _, change in changes), default=0)
