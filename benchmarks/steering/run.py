"""Draw and judge methods x strengths of guidance with a CLIP that never guided.

    torchrun --nproc_per_node 2 benchmarks/steering/run.py \
        --data ../shared/data/emoji64-train.parquet --held_out ../shared/data/emoji64-val.parquet \
        --output benchmarks/steering/results

Every method draws the same prompts from the same noise, on three prompt sets (prompt_sets.py). The table tells
alignment (judge top-1 among 100 texts, mean rank), quality (kernel distance, precision and recall in the judge's
features, the nearest training image) and cost (images through denoiser, decoder and CLIP, seconds, memory). The
guide's own similarity is shown for diagnosis and is no evidence: a guiding CLIP always likes its own images.

Images are kept in ``work`` batch by batch: a run that was interrupted, or is given more processes, goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from drawing import Cell, Drawer, Method, load_cell
from judging import COPY_RADIUS, Judge
from methods import BUDGET, TABLES
from prompt_sets import REPORT_SETS, Item, prompt_set
from report import Result, contact_sheet, write
from rich.console import Console
from rich.progress import Progress

import clip_guidance as cg
from clip_guidance.data.dataset import CaptionedImages
from clip_guidance.training.settings import parse_settings

sys.path.append(str(Path(__file__).parents[1]))
from _cost_meters import step_peak_bytes


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    data: str  # parquet table of the training images: the reference
    held_out: str  # parquet table of the images held out of training: the prompts
    output: str  # folder for report.md, report.json, plots and contact sheets
    work: str = "runs/steering"  # folder for the images
    model: str = "emoji"  # pipeline: a packaged name, a folder, or a hub id
    clip: str = ""  # CLIP that guides; by default the model's own
    judge: str = "emoji-judge"  # CLIP that judges, and never guides
    exclude_captions_containing: str | None = "skin tone"  # leave out images whose name contains this
    sets: list[str] = field(default_factory=lambda: list(REPORT_SETS))  # of prompts, see prompt_sets.py
    table: str = ""  # one of methods.TABLES; by default main for the held-out pairs, short for the others
    only: list[str] = field(default_factory=list)  # run only the methods whose title begins with one of these
    count: int = 500  # prompts per set
    candidates: int = 100  # texts that the judge chooses among
    batch_size: int = 20  # images drawn at a time
    seed: int = 0  # of prompts and noise
    device: str = "cpu"  # torch device


class Program:
    """The models and the images, and what is done with them."""

    def __init__(self, settings: Settings):
        self.settings, self.state = settings, PartialState(cpu=settings.device == "cpu")
        device = "cpu" if settings.device == "cpu" else self.state.device
        pipe = cg.load_pipeline(settings.model, device)
        pipe.set_progress_bar_config(disable=True)
        self.drawer = Drawer(
            pipe,
            cg.CLIP.from_pretrained(settings.clip or settings.model).to(device),
            settings.batch_size,
            settings.seed,
        )
        size = pipe.unet.config.sample_size * pipe.vae_scale_factor
        exclude = settings.exclude_captions_containing
        self.training, self.held_out = (
            CaptionedImages.from_parquet(path, size, exclude) for path in (settings.data, settings.held_out)
        )
        self.judge: Judge | None = None
        if self.state.is_main_process:
            self.judge = Judge(cg.CLIP.from_pretrained(settings.judge).to(device), self.training, self.held_out)

    def items(self, name: str) -> list[Item]:
        settings = self.settings
        return prompt_set(name, self.held_out.rows, settings.count, settings.candidates, settings.seed)

    def draw(self, method: Method, items: Sequence[Item], label: str) -> Cell | None:
        """Draws what is missing, each process its share; the main process returns the whole."""
        root = Path(self.settings.work)
        share = slice(self.state.process_index, None, self.state.num_processes)
        with Progress(console=Console(stderr=True), disable=not self.state.is_main_process) as progress:
            task = progress.add_task(label, total=len(items))
            for count in self.drawer.draw_all(root, method, items, share):
                progress.advance(task, count * self.state.num_processes)
        self.state.wait_for_everyone()
        return load_cell(self.drawer.paths(root, method, items)) if self.state.is_main_process else None

    def result(self, method: Method | None, cell: Cell, items: Sequence[Item]) -> Result:
        if self.judge is None:
            raise RuntimeError("only the main process judges")
        cost = {name: total / len(items) for name, total in cell.cost.items()}
        if method is not None:
            cost["mebibytes"] = self.mebibytes(method, items[0])
        return Result(method, self.judge(cell, items), cost)

    def share(self, values: list[int]) -> None:
        """Overwrite ``values`` of every process with the main process's."""
        broadcast_object_list(values)

    def mebibytes(self, method: Method, item: Item) -> float:
        """Measure the peak above the weights of two steps of one image, guided if the method guides."""
        method = replace(method, options={**method.options, **({"start": 0.0, "stop": 1.0} if method.scale else {})})
        drawer = Drawer(self.drawer.pipe, self.drawer.clip, 1, self.settings.seed)

        def run(steps: int) -> None:
            drawer.draw(method, [item.prompt], 0)

        return step_peak_bytes(self.drawer.pipe.unet, run) / 2**20


def preamble(settings: Settings, judge: Judge) -> str:
    """Tell what the numbers of the report mean."""
    return (
        "# Steering, judged by a CLIP that never guided\n\n"
        f"Model `{settings.model}`, judge `{settings.judge}` among {settings.candidates} texts (chance "
        f"{100 / settings.candidates:g} %), on {settings.device}. of all names: preferred among the {len(judge.names)} "
        "names of all images, in the style that was asked for. In brackets 95 % intervals. Kernel distance "
        f"to {len(judge.reference)} training images; precision and recall: against as many as are judged. "
        "nearest: median distance to the nearest training image, root mean square of pixels in [0, 1]; copied: share "
        f"nearer than {COPY_RADIUS:g}. The row of real images "
        "is the judge's calibration: no method can be seen to be better. Images through denoiser, decoder and CLIP "
        "are forward passes; guided methods go back through the last two too, and "
        "`exact`, DPS, LGD-MC, FreeDoM, universal guidance and TFG through the denoiser."
    )


def main(settings: Settings) -> None:
    program = Program(settings)
    output = Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    if settings.table and settings.table not in TABLES:
        raise SystemExit(f"--table: expected one of {', '.join(TABLES)}, got {settings.table!r}")
    results: dict[str, list[Result]] = {}
    for name in settings.sets:
        items = program.items(name)
        table = TABLES[settings.table or ("main" if name == "held-out" else "short")]
        methods = [m for m in table() if not settings.only or m.title.startswith(tuple(settings.only))]
        if program.judge is not None:
            real, known = program.judge.real(items)
            results[name] = [program.result(None, real, known)] if known else []
        for i, method in enumerate(methods):
            cell = program.draw(method, items, f"{name}: {method.title}")
            if cell is not None and program.judge is not None:
                results[name].append(program.result(method, cell, items))
                (output / "sheets").mkdir(exist_ok=True)
                contact_sheet(cell).save(output / "sheets" / f"{name}-{i:02d}.png")
                write(results, preamble(settings, program.judge), BUDGET, output)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(parse_settings(Settings))
