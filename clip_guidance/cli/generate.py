"""``clip-guidance generate``: images from prompts, steered by CLIP."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from clip_guidance.cli import _options as common
from clip_guidance.generation.generator import SCHEDULERS, GeneratedImage, GenerateSettings, read_settings

DEFAULTS = GenerateSettings(prompt="unset")
TUNED_DEFAULT = "tuned for the model"


def command(
    context: typer.Context,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What to draw; repeat for several.", show_default=False)
    ] = None,
    from_: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Draw this image again; options given beside it change it.", show_default=False),
    ] = None,
    negative_prompt: Annotated[str, typer.Option(help="What to keep away from.")] = DEFAULTS.negative_prompt,
    clip_prompt: Annotated[str | None, typer.Option(help="What CLIP steers to.", show_default="the prompt")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first image; the next one has seed + 1.")] = DEFAULTS.seed,
    num_images: Annotated[int, typer.Option(min=1, help="Images for each prompt.")] = 1,
    model: Annotated[str, typer.Option(help="Pipeline: a packaged name, a folder, or a hub id.")] = DEFAULTS.model,
    clip: Annotated[str | None, typer.Option(help="CLIP that steers.", show_default="that of the model")] = None,
    judge: Annotated[str | None, typer.Option(help="CLIP that only scores.", show_default="that of the model")] = None,
    scale: Annotated[
        float | None, typer.Option(help="Strength of CLIP guidance; 0 is off.", show_default=TUNED_DEFAULT)
    ] = None,
    guidance_scale: Annotated[
        float, typer.Option(help="Strength of classifier-free guidance.")
    ] = DEFAULTS.guidance_scale,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = DEFAULTS.steps,
    mode: Annotated[str, typer.Option(help="x0, or exact: through the denoiser.")] = DEFAULTS.mode,
    start: Annotated[
        float | None, typer.Option(min=0, max=1, help="Where CLIP guidance begins.", show_default=TUNED_DEFAULT)
    ] = None,
    stop: Annotated[float, typer.Option(min=0, max=1, help="Where CLIP guidance ends.")] = DEFAULTS.stop,
    every: Annotated[int, typer.Option(min=1, help="Steer at every n-th step.")] = DEFAULTS.every,
    cutouts: Annotated[int, typer.Option(min=1, help="Views of the image that CLIP sees.")] = DEFAULTS.cutouts,
    scheduler: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(SCHEDULERS)}.", show_default="the model's own")
    ] = DEFAULTS.scheduler,
    cap: Annotated[
        float | None,
        typer.Option(help="Longest step of CLIP guidance, in steps of classifier-free guidance.", show_default="none"),
    ] = DEFAULTS.cap,
    output: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("images"),
    report: common.Report = None,
    json: common.Json = False,
    device: common.Device = None,
) -> None:
    """Draw images. Each is a PNG that holds all that is needed to draw it again.

    Example: clip-guidance generate --prompt "a red apple" --num-images 4 --seed 7
    """
    if not (from_ or prompt):
        raise typer.BadParameter("give --prompt or --from")
    given = _given(context)
    replace(DEFAULTS, **given)  # options that make no sense are refused before anything is drawn
    output.mkdir(parents=True, exist_ok=True)  # fails now rather than after the first image
    common.quiet("transformers", "diffusers")  # in this order: the second makes the first talk
    rows = []
    with common.Job() as job:
        originals = _originals(from_ or [], job)
        planned = _planned([replace(base, **given) for base in originals or [DEFAULTS]], prompt, num_images, job)
        for generated in _draw(planned if originals or not from_ else [], common.resolve_device(device)):
            path = generated.save(output)
            rows.append({"image": str(path), **generated.record()})
            if generated.settings in originals:
                _compare(generated, originals[generated.settings])
    _print(rows, json)
    if report is not None:
        from clip_guidance.report import generated as page_of

        common.save_report(page_of(rows, failed=job.failures), report)
    job.finish()


def _originals(paths: list[Path], job: common.Job) -> dict[GenerateSettings, Path]:
    """The images to draw again, by their settings; those that hold none fail by name."""
    originals = {}
    for path in paths:
        try:
            originals[read_settings(path)] = path
        except (ValueError, TypeError) as error:
            job.fail(str(path), str(error).removeprefix(f"{path}: "))
    return originals


def _planned(
    bases: list[GenerateSettings], prompts: list[str] | None, num_images: int, job: common.Job
) -> list[GenerateSettings]:
    """One settings an image; a prompt without words fails by name, the others are drawn."""
    planned = []
    for base in bases:
        for text in prompts or [base.prompt]:
            try:
                planned += [replace(base, prompt=text, seed=base.seed + number) for number in range(num_images)]
            except ValueError as error:
                job.fail(f"--prompt {text!r}", str(error))
    return planned


def _given(context: typer.Context) -> dict[str, Any]:
    """The settings that stand on the command line; ``--from`` supplies the others. Prompts may be several."""
    sources = {field.name: context.get_parameter_source(field.name) for field in fields(GenerateSettings)}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    return {name: context.params[name] for name in given if name != "prompt"}


def _draw(planned: list[GenerateSettings], device: str) -> Iterable[GeneratedImage]:
    from clip_guidance.generation.generator import generate

    with common.progress() as bar:
        task = bar.add_task("steps", total=sum(settings.steps for settings in planned))
        yield from generate(planned, device, on_step=lambda: bar.advance(task))


def _compare(generated: GeneratedImage, original: Path) -> None:
    from PIL import Image

    with Image.open(original) as image:
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
