"""``clip-guidance generate``: images from prompts, steered by CLIP and by rewards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import typer

from clip_guidance._tuned import TunedPair, load_tuned
from clip_guidance.cli import _common as common
from clip_guidance.cli import _generate_options as own
from clip_guidance.cli import _options as options
from clip_guidance.cli import _target_options as targets
from clip_guidance.cli._generate_output import compare_image, print_images, save_report
from clip_guidance.cli.generate_table import TableWork, generate_table
from clip_guidance.generation.candidates import BY_CLIP, Candidates
from clip_guidance.generation.settings import GenerateSettings, read_settings

if TYPE_CHECKING:
    from clip_guidance.generation.generator import ImageGenerator
    from clip_guidance.generation.image import GeneratedImage
    from clip_guidance.metrics.job.processes import Processes

DEFAULTS = GenerateSettings(prompt="unset")
Planned: TypeAlias = tuple[GenerateSettings, Path | None]  # and the image that --from named


def command(
    context: typer.Context,
    prompt: options.Prompts = None,
    prompts_file: own.PromptsFile = None,
    from_: options.From = None,
    negative_prompt: options.NegativePrompt = DEFAULTS.negative_prompt,
    clip_prompt: options.ClipPrompt = None,
    clip_images: targets.ClipImages = None,
    regions: targets.Regions = None,
    seed: options.Seed = DEFAULTS.seed,
    num_images: options.NumImages = 1,
    model: options.Pipeline = DEFAULTS.model,
    clip: options.SteeringCLIP = None,
    judge: options.Judge = None,
    scale: options.Scale = None,
    guidance_scale: options.GuidanceScale = DEFAULTS.guidance_scale,
    steps: options.Steps = DEFAULTS.steps,
    width: own.Width = DEFAULTS.width,
    height: own.Height = DEFAULTS.height,
    method: own.Method = DEFAULTS.method,
    mode: options.Mode = DEFAULTS.mode,
    start: options.Start = None,
    stop: options.Stop = DEFAULTS.stop,
    every: options.Every = DEFAULTS.every,
    cutouts: options.Cutouts = DEFAULTS.cutouts,
    scheduler: options.Scheduler = DEFAULTS.scheduler,
    cap: options.Cap = DEFAULTS.cap,
    damping: options.Damping = DEFAULTS.damping,
    tuned: options.Tuned = None,
    rewards: options.SteeringRewards = None,
    particles: options.Particles = DEFAULTS.particles,
    best_of: options.BestOf = None,
    keep: options.Keep = 1,
    rank_by: options.RankBy = BY_CLIP,
    batch_size: own.BatchSize = 1,
    output: options.ImageFolder = Path("images"),
    report: options.Report = None,
    json: options.Json = False,
    device: options.Device = None,
) -> None:
    """Generate images. Each is a PNG that holds its settings, so that it can be generated again.

    Example: clip-guidance generate --prompt "a red apple" --num-images 4 --seed 7
    """
    _check_sources(context, {"--prompts-file": prompts_file, "--from": from_, "--prompt": prompt})
    pair = load_tuned(tuned) if tuned else None
    given = _given(context, pair)
    candidates = _candidates(context, best_of, keep, rank_by)
    processes = _processes(device, candidates, prompts_file)
    _make_folder(output)  # an error is raised now rather than after the first image
    job = common.Job()
    if prompts_file is not None:
        work = TableWork(prompts_file, output, given, num_images, candidates, batch_size, processes, pair)
        rows = generate_table(work, job)
    else:
        rows = _generate(from_ or [], prompt, num_images, given, candidates, processes, pair, output, job)
    if not processes.rank:  # another ends with code 0, lest a launcher end the first one, which is still writing
        _finish(rows, json, report, job)


def _finish(rows: list[dict[str, Any]], json: bool, report: Path | None, job: common.Job) -> None:
    print_images(rows, json)
    if report is not None:
        save_report(rows, job, report)
    job.finish()


def _generate(
    from_: list[Path],
    prompts: list[str] | None,
    num_images: int,
    given: dict[str, Any],
    candidates: Candidates | None,
    processes: Processes,
    pair: TunedPair | None,
    output: Path,
    job: common.Job,
) -> list[dict[str, Any]]:
    """Draw the images of --prompt and --from, one by one, until Ctrl-C; return the record of each."""
    rows: list[dict[str, Any]] = []
    with job:
        originals = _originals(from_, job)
        planned = _plan(originals if from_ else {None: DEFAULTS}, given, prompts, num_images, candidates, job)
        for generated, original in _draw(planned, candidates, processes, job, pair):
            if (path := _saved(generated, output, job)) is None:
                break
            rows.append({"image": str(path), **generated.record()})
            if original is not None and generated.settings == originals[original]:
                compare_image(generated, original)
    return rows


def _originals(paths: list[Path], job: common.Job) -> dict[Path | None, GenerateSettings]:
    """Read the settings of the images of --from; an image without settings fails by name."""
    originals: dict[Path | None, GenerateSettings] = {}
    for path in paths:
        try:
            originals[path] = read_settings(path)
        except ValueError as error:
            job.fail(str(path), str(error).removeprefix(f"{path}: "))
    return originals


def _plan(
    bases: Mapping[Path | None, GenerateSettings],
    given: dict[str, Any],
    prompts: list[str] | None,
    num_images: int,
    candidates: Candidates | None,
    job: common.Job,
) -> list[Planned]:
    """List the settings of each image; what no image can be made of fails by name, the others go on."""
    planned: list[Planned] = []
    for original, base in bases.items():
        for text in prompts or [base.prompt]:
            try:
                first = base.overridden({**given, "prompt": text})
                seeds = candidates.n if candidates else first.particles  # of one image; no two images share any
                later = (replace(first, seed=first.seed + number * seeds) for number in range(num_images))
                planned += [(settings, original) for settings in later]
            except ValueError as error:
                job.fail(f"--prompt {text!r}" if prompts else str(original), str(error))
    return planned


def _check_sources(context: typer.Context, given: Mapping[str, Any]) -> None:
    """Reject prompts from nowhere or from two places, and options that would do nothing."""
    sources = [name for name, value in given.items() if value]
    if not sources:
        raise typer.BadParameter(f"give one of {', '.join(given)}")
    if sources[0] == "--prompts-file" and len(sources) > 1:
        raise typer.BadParameter(f"give --prompts-file or {sources[1]}")
    if sources[0] != "--prompts-file" and _is_given(context, "batch_size"):
        raise typer.BadParameter("--batch-size is for the images of --prompts-file")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _given(context: typer.Context, pair: TunedPair | None) -> dict[str, Any]:
    """Return the settings given on the command line, except for the prompts; then those of the tuned pair."""
    names = [field.name for field in fields(GenerateSettings) if _is_given(context, field.name)]
    given = {name: context.params[name] for name in names if name != "prompt"}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if pair is not None and "method" in given:
        raise typer.BadParameter("--tuned was measured for a mode: give --tuned or --method")
    if pair is not None:
        given = {"model": pair.pipeline.name, "clip": pair.clip.name, **pair.options, **given}
    DEFAULTS.overridden(given)  # raises for invalid options before anything is generated
    return given


def _make_folder(output: Path) -> None:
    """Make the folder of the images.

    Raises:
        ValueError: It is a file, or may not be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "a file is in its place" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise ValueError(f"--output {output}: the folder cannot be made ({reason})") from None
    if not os.access(output, os.W_OK | os.X_OK):
        raise ValueError(f"--output {output}: the folder may not be written")


def _candidates(context: typer.Context, best_of: int | None, keep: int, rank_by: str) -> Candidates | None:
    if best_of is not None:
        return Candidates(best_of, keep, rank_by)
    for name in ("keep", "rank_by"):
        if _is_given(context, name):
            raise typer.BadParameter(f"--{name.replace('_', '-')} is for the candidates of --best-of")
    return None


def _processes(device: str | None, candidates: Candidates | None, prompts_file: Path | None) -> Processes:
    from clip_guidance.metrics.job.processes import find_processes

    processes = find_processes(device)
    if processes.count > 1 and candidates is None and prompts_file is None:
        what = "they share candidates (--best-of) or rows (--prompts-file)"
        raise ValueError(f"{processes.count} processes would draw the same images: {what}")
    return processes


def _draw(
    planned: list[Planned],
    candidates: Candidates | None,
    processes: Processes,
    job: common.Job,
    pair: TunedPair | None = None,
) -> Iterator[tuple[GeneratedImage, Path | None]]:
    """Generate the images; one whose own settings cannot be followed fails by name.

    Of several processes, which share the candidates, the first one yields the images.
    """
    common.quiet("transformers", "diffusers")  # in this order: importing diffusers makes transformers print advice
    from clip_guidance.clip.domain import foreign_prompts
    from clip_guidance.generation.generator import ImageGenerator
    from clip_guidance.generation.image import FailedImageError

    for model in dict.fromkeys(settings.model for settings, _ in planned):
        if message := foreign_prompts(model, [one.prompt for one, _ in planned if one.model == model]):
            common.narrate("warning", message)
    generator = ImageGenerator(common.resolve_device(processes.device))
    if pair is not None and planned:
        generator.check_tuned(pair, planned[0][0])
    with common.progress() as bar:
        own = candidates.n / processes.count if candidates else 1
        task = bar.add_task("steps", total=sum(settings.steps for settings, _ in planned) * own)
        for settings, original in planned:
            try:
                drawn = _drawn(generator, settings, candidates, processes, lambda: bar.advance(task))
            except ValueError as error:
                if original is None and not isinstance(error, FailedImageError):
                    raise  # what the command line asks for holds for every image
                job.fail(str(original or f"--prompt {settings.prompt!r}"), str(error))
                continue
            if not processes.rank:
                yield from ((generated, original) for generated in drawn)


def _drawn(
    generator: ImageGenerator,
    settings: GenerateSettings,
    candidates: Candidates | None,
    processes: Processes,
    on_step: Callable[[], None],
) -> list[GeneratedImage]:
    """Generate one image, or the best of its candidates; those that cannot be ranked are named."""
    if candidates is None:
        return [generator(settings, on_step)]
    drawn = generator.best_of(settings, candidates, on_step, processes if processes.count > 1 else None)
    for candidate in drawn[0].choice.failed if drawn[0].choice and not processes.rank else ():
        what = f"the candidate of {settings.prompt!r} with seed {candidate['seed']} {candidate['reason']}"
        common.narrate("skipped", what)
    return drawn


def _saved(generated: GeneratedImage, output: Path, job: common.Job) -> Path | None:
    """Save an image; None where the disk is full, for which the next image is too large as well."""
    try:
        return generated.save(output)
    except OSError as error:
        job.fail(str(error.filename or output), f"cannot be written ({error.strerror or error})")
        return None
