"""``clip-guidance tune``: which strength, mode, damping and window suit a pipeline and a CLIP."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from clip_guidance.cli import _common as common
from clip_guidance.cli import _options as options
from clip_guidance.cli import _tune_options as own
from clip_guidance.generation.settings import GenerateSettings

if TYPE_CHECKING:
    from clip_guidance.generation.tuning import TriedSetting, TuneResult

DEFAULTS = GenerateSettings(prompt="unset")


def command(
    judge: own.RequiredJudge,
    prompt: options.Prompts = None,
    prompts_file: own.PromptsFile = None,
    model: options.Pipeline = DEFAULTS.model,
    clip: options.SteeringCLIP = None,
    images: own.RealImages = None,
    scales: own.Scales = None,
    modes: own.Modes = None,
    dampings: own.Dampings = None,
    windows: own.Windows = None,
    budget: own.Budget = None,
    steps: options.Steps = DEFAULTS.steps,
    guidance_scale: options.GuidanceScale = DEFAULTS.guidance_scale,
    seed: options.Seed = DEFAULTS.seed,
    output: own.TunedFile = Path("tuned.json"),
    report: options.Report = None,
    json: options.Json = False,
    device: options.Device = None,
) -> None:
    """Find which strength, mode, damping and window of guidance suit a pipeline and a CLIP.

    Draws each combination on the prompts, and writes the best to a file for generate --tuned. What was interrupted
    goes on when it is called again.

    Example: clip-guidance tune --prompts-file prompts.txt --judge emoji-judge --images photos/ --budget 200
    """
    prompts = _prompts(prompt, prompts_file)
    if output.suffix != ".json":
        raise typer.BadParameter(f"--output must end in .json, got {output.name}")
    output.parent.mkdir(parents=True, exist_ok=True)
    common.quiet("transformers", "diffusers")  # in this order: importing diffusers makes transformers print advice
    from clip_guidance.generation.pipelines import load_pipeline
    from clip_guidance.generation.tuning import TuningGrid, tune
    from clip_guidance.images.find import find_images

    given: dict[str, Any] = {"scales": scales, "modes": modes, "dampings": dampings, "windows": windows}
    grid = TuningGrid(**{name: tuple(value) for name, value in given.items() if value})
    with common.Job() as job, common.progress() as bar:
        task = bar.add_task("images", total=budget)
        found = tune(
            _silent(load_pipeline(model, common.resolve_device(device))),
            common.load_clip(clip or model, device),
            prompts,
            common.load_clip(judge, device),
            images=find_images(images) if images else None,
            grid=grid,
            budget=budget,
            seed=seed,
            runs=output.with_suffix(".runs.jsonl"),
            on_image=lambda: bar.advance(task),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
        )
        pipeline = replace(found.pair.pipeline, name=model)
        found = replace(found, pair=replace(found.pair, pipeline=pipeline))
        found.save(output)
        _print(found, output, json)
        _save_report(found, report)
    job.finish()


def _prompts(prompts: list[str] | None, file: Path | None) -> list[str]:
    """Return the prompts of the command line or of the lines of a file."""
    if bool(prompts) == (file is not None):
        raise typer.BadParameter("give --prompt or --prompts-file")
    if file is None:
        return list(prompts or [])
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise typer.BadParameter(f"--prompts-file: {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8, got byte {error.object[error.start]:#x}") from None
    if not lines:
        raise typer.BadParameter(f"--prompts-file: expected a prompt per line, got none in {file}")
    return lines


def _silent(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _print(found: TuneResult, output: Path, json: bool) -> None:
    """Print what was tried, and say what was chosen and why not more."""
    from clip_guidance.report.tuning import COLUMNS, cells

    if json:
        tried = [{**asdict(each.setting), **_figures(each)} for each in found.tried]
        common.print_json({**found.pair.record(), "tried": tried, "untried": found.untried})
    else:
        rows = [(*cells(each), "chosen" if each is found.best else each.failed) for each in found.tried]
        common.print_table(list(COLUMNS), rows)
    if found.untried:
        common.narrate("warning", f"the budget left {found.untried} settings untried")
    if found.pair.defaults.scale == 0:
        common.narrate("warning", "no setting was better than no guidance, which the file says: its scale is 0")
    common.narrate("tuned", f"{output}; use it with clip-guidance generate --tuned {output}")


def _save_report(found: TuneResult, report: Path | None) -> None:
    from clip_guidance.report import tuning

    if report is not None:
        common.save_report(tuning(found), report)


def _figures(tried: TriedSetting) -> dict[str, Any]:
    values = {name: getattr(tried, name) for name in ("named", "kernel_distance", "seconds")}
    return {**({} if tried.failed else values), "failed": tried.failed}
