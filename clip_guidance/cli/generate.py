"""``clip-guidance generate``: images from prompts, steered by CLIP."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from clip_guidance.cli import _common as common
from clip_guidance.cli import _options as options
from clip_guidance.generation.settings import GenerateSettings, read_settings

if TYPE_CHECKING:
    from clip_guidance.generation.image import GeneratedImage

DEFAULTS = GenerateSettings(prompt="unset")


def command(
    context: typer.Context,
    prompt: options.Prompts = None,
    from_: options.From = None,
    negative_prompt: options.NegativePrompt = DEFAULTS.negative_prompt,
    clip_prompt: options.ClipPrompt = None,
    seed: options.Seed = DEFAULTS.seed,
    num_images: options.NumImages = 1,
    model: options.Pipeline = DEFAULTS.model,
    clip: options.SteeringCLIP = None,
    judge: options.Judge = None,
    scale: options.Scale = None,
    guidance_scale: options.GuidanceScale = DEFAULTS.guidance_scale,
    steps: options.Steps = DEFAULTS.steps,
    mode: options.Mode = DEFAULTS.mode,
    start: options.Start = None,
    stop: options.Stop = DEFAULTS.stop,
    every: options.Every = DEFAULTS.every,
    cutouts: options.Cutouts = DEFAULTS.cutouts,
    scheduler: options.Scheduler = DEFAULTS.scheduler,
    cap: options.Cap = DEFAULTS.cap,
    output: options.ImageFolder = Path("images"),
    report: options.Report = None,
    json: options.Json = False,
    device: options.Device = None,
) -> None:
    """Generate images. Each is a PNG that holds its settings, so that it can be generated again.

    Example: clip-guidance generate --prompt "a red apple" --num-images 4 --seed 7
    """
    given = _given(context, from_, prompt)
    output.mkdir(parents=True, exist_ok=True)  # an error is raised now rather than after the first image
    rows: list[dict[str, Any]] = []
    with common.Job() as job:
        originals = _originals(from_ or [], job)
        planned = _plan([replace(base, **given) for base in originals or [DEFAULTS]], prompt, num_images, job)
        for generated in _draw(planned if originals or not from_ else [], device):
            rows.append({"image": str(generated.save(output)), **generated.record()})
            if generated.settings in originals:
                _compare(generated, originals[generated.settings])
    _print(rows, json)
    if report is not None:
        _save_report(rows, job, report)
    job.finish()


def _originals(paths: list[Path], job: common.Job) -> dict[GenerateSettings, Path]:
    """Read the settings of the images of --from; an image without settings fails by name."""
    originals = {}
    for path in paths:
        try:
            originals[read_settings(path)] = path
        except (ValueError, TypeError) as error:
            job.fail(str(path), str(error).removeprefix(f"{path}: "))
    return originals


def _plan(
    bases: list[GenerateSettings], prompts: list[str] | None, num_images: int, job: common.Job
) -> list[GenerateSettings]:
    """List the settings of each image; a prompt without words fails by name, the others go on."""
    planned = []
    for base in bases:
        for text in prompts or [base.prompt]:
            try:
                planned += [replace(base, prompt=text, seed=base.seed + number) for number in range(num_images)]
            except ValueError as error:
                job.fail(f"--prompt {text!r}", str(error))
    return planned


def _given(context: typer.Context, from_: list[Path] | None, prompts: list[str] | None) -> dict[str, Any]:
    """Return the settings given on the command line, except for the prompts."""
    if not (from_ or prompts):
        raise typer.BadParameter("give --prompt or --from")
    sources = {field.name: context.get_parameter_source(field.name) for field in fields(GenerateSettings)}
    names = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    given = {name: context.params[name] for name in names if name != "prompt"}
    replace(DEFAULTS, **given)  # raises for invalid options before anything is generated
    return given


def _draw(planned: list[GenerateSettings], device: str | None) -> Iterator[GeneratedImage]:
    common.quiet("transformers", "diffusers")  # in this order: importing diffusers makes transformers print advice
    from clip_guidance.generation.generator import generate

    with common.progress() as bar:
        task = bar.add_task("steps", total=sum(settings.steps for settings in planned))
        yield from generate(planned, common.resolve_device(device), on_step=lambda: bar.advance(task))


def _compare(generated: GeneratedImage, original: Path) -> None:
    from clip_guidance.images.decoders import open_image

    with open_image(original) as image:
        same = image.convert("RGB").tobytes() == generated.image.tobytes()
    if same:
        common.narrate("same", f"{original} was drawn again bit for bit")
    else:
        common.narrate("warning", f"{original} came out differently; models, versions or device have changed")


def _print(rows: list[dict[str, Any]], json: bool) -> None:
    if json:
        common.print_json(rows)
        return
    judges = list(dict.fromkeys(score["model"] for row in rows for score in row["scores"]))
    table = []
    for row in rows:
        scores = {score["model"]: score["score"] for score in row["scores"]}
        settings = row["settings"]
        table.append((row["image"], settings["prompt"], settings["seed"], *(scores.get(judge, "") for judge in judges)))
    common.print_table(["image", "prompt", "seed", *(f"100·cos by {judge}" for judge in judges)], table)


def _save_report(rows: list[dict[str, Any]], job: common.Job, report: Path) -> None:
    from clip_guidance.report import generated

    common.save_report(generated(rows, failed=job.failures), report)
