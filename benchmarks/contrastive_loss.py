"""Measure memory and time of the contrastive loss: tiled, plain, and with checkpointed rows.

    python benchmarks/contrastive_loss.py --sizes 4096 8192 16384 --output benchmarks/contrastive_loss.md

Each cell is a process of its own: the peak of its memory above that of holding the inputs, and the time of one forward
and backward pass. All run in one go on one machine; what the other ones cost is shown as a ratio to ours.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clip_guidance.loss.contrastive import contrastive_loss
from clip_guidance.loss.tiled import tiled_contrastive_loss
from clip_guidance.training.settings import parse_settings


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    output: str = ""  # Markdown file for the table, which is printed too
    sizes: list[int] = field(default_factory=lambda: [4096, 8192, 16384])  # pairs per batch
    dim: int = 512  # width of the embeddings
    methods: list[str] = field(default_factory=lambda: ["tiled", "plain", "checkpointed rows"])  # losses to compare
    repeats: int = 1  # processes per method and size, of which the least time and memory count
    cell: bool = False  # measure one method and size and print JSON, as this program calls itself


def checkpointed_rows(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, rows: int = 1024) -> Tensor:
    """Compute logits block by block, rows then columns; torch recomputes each in the backward pass."""
    images, texts = F.normalize(image_embeds, dim=-1), F.normalize(text_embeds, dim=-1)
    factor = logit_scale.exp()

    def block(queries: Tensor, keys: Tensor, first: int) -> Tensor:
        target = torch.arange(first, first + len(queries))
        return F.cross_entropy(factor * queries @ keys.T, target, reduction="sum")

    total = images.new_zeros(())
    for queries, keys in ((images, texts), (texts, images)):
        for first in range(0, len(queries), rows):
            part = queries[first : first + rows]
            total = total + checkpoint(block, part, keys, first, use_reentrant=False)
    return total / (2 * len(images))


LOSSES: dict[str, Callable[..., Tensor]] = {
    "tiled": tiled_contrastive_loss,
    "plain": contrastive_loss,
    "checkpointed rows": checkpointed_rows,
}


def measure(method: str, size: int, dim: int) -> dict[str, float]:
    """Measure seconds, bytes and the gradient's sum of squares, on which all must agree."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, dim, generator=generator).requires_grad_() for _ in range(2)]
    scale = torch.tensor([2.6]).requires_grad_()
    loss = LOSSES[method]
    small = [x[:64].detach().requires_grad_() for x in inputs]
    loss(*small, scale).backward()  # loads what is loaded late
    scale.grad = None
    before, began = peak_bytes(forget=True), time.perf_counter()
    loss(*inputs, scale).backward()
    seconds = time.perf_counter() - began
    norm = sum(float(x.grad.double().square().sum()) for x in inputs if x.grad is not None)
    return {"seconds": seconds, "bytes": peak_bytes() - before, "norm": norm, "scale": float(scale.grad)}


def peak_bytes(forget: bool = False) -> int:
    """Measure this process's peak so far; on Linux without what was before ``forget``."""
    status = Path("/proc/self/status")
    if forget and status.is_file():
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is held now (proc(5))
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def cell(method: str, settings: Settings, size: int) -> dict[str, float]:
    options = ["--cell", "true", "--methods", method, "--sizes", str(size), "--dim", str(settings.dim)]
    found = []
    for _ in range(settings.repeats):
        done = subprocess.run([sys.executable, __file__, *options], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{method}, {size}: {done.stderr}")
        found.append(json.loads(done.stdout))
    return {**found[0], **{name: min(one[name] for one in found) for name in ("seconds", "bytes")}}


def main(settings: Settings) -> None:
    if unknown := set(settings.methods) - set(LOSSES):
        raise SystemExit(f"--methods: expected some of {', '.join(LOSSES)}, got {sorted(unknown)}")
    if settings.cell:
        print(json.dumps(measure(settings.methods[0], settings.sizes[0], settings.dim)))
        return
    lines = ["| N | loss | MB above the inputs | to ours | s | to ours | gradient |", "|" + " --- |" * 7]
    for size in settings.sizes:
        ours: dict[str, float] = {}
        for method in settings.methods:
            found = cell(method, settings, size)
            ours = ours or found
            difference = abs(found["norm"] / ours["norm"] - 1)
            lines.append(
                f"| {size:,} | {method} | {found['bytes'] / 1e6:,.0f} | {found['bytes'] / ours['bytes']:.1f} | "
                f"{found['seconds']:.1f} | {found['seconds'] / ours['seconds']:.2f} | {difference:.0e} |"
            )
            print(lines[-1], flush=True)
    head = (
        "# Contrastive loss over the size of the batch\n\n"
        f"`python benchmarks/contrastive_loss.py`: forward and backward, d = {settings.dim}, float32, "
        f"{torch.get_num_threads()} CPU threads, torch {torch.__version__.split('+')[0]}. MB are the peak above "
        "holding the inputs, with their gradients; the last column tells how far these, squared and summed, are from "
        "ours."
    )
    page = head + "\n\n" + "\n".join(lines) + "\n"
    if settings.output:
        Path(settings.output).write_text(page)


if __name__ == "__main__":
    main(parse_settings(Settings))
