"""``clip-guidance score``: how well does each image match its text?"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clip_guidance.cli import _options as common

if TYPE_CHECKING:
    from clip_guidance.metrics.job.items import Item
    from clip_guidance.metrics.job.judge import Judge
    from clip_guidance.metrics.job.processes import Processes
    from clip_guidance.metrics.job.run import Options, Work
    from clip_guidance.metrics.job.store import WorkFile
    from clip_guidance.report import Page

SHOWN = 200  # rows of the table on a terminal


class LongPrompts(str, Enum):
    """What becomes of a text that does not fit the context."""

    truncate = "truncate"
    average = "chunk-average"


class DType(str, Enum):
    """What the CLIP computes in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def command(
    paths: Annotated[
        list[str] | None,  # as a Path, ./- would be -
        typer.Argument(
            help="Images, folders, globs, tables (.csv, .tsv, .jsonl, .parquet) of image and maybe prompt; "
            "- for lines of paths or JSON objects.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="The text for all images without one.", show_default="the prompt stored by generate"),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(help="A table with the columns image and prompt, in place of PATHS.", show_default=False),
    ] = None,
    definition: Annotated[
        list[str],
        typer.Option(
            help="torchmetrics (100·cos), hessel (2.5·max(cos, 0), prefixed), cosine, clip-iqa[:PAIR], "
            "aesthetic:HEAD.safetensors; repeat for several at once."
        ),
    ] = ["torchmetrics"],  # noqa: B006
    model: Annotated[
        list[str], typer.Option(help="CLIP: a packaged name, a folder, or a hub id; repeat for several at once.")
    ] = ["emoji-judge"],  # noqa: B006
    output: Annotated[
        Path | None,
        typer.Option(help="Also write .jsonl, .csv or .parquet, complete at the end.", show_default=False),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with --output: what it holds, or what a killed run left in OUTPUT.partial, is not computed "
            "again where image (its bytes), prompt, definition and model are the same.",
        ),
    ] = False,
    long_prompts: Annotated[
        LongPrompts,
        typer.Option(help="Texts above the context: truncate (the row says so), or average chunks under another name."),
    ] = LongPrompts.truncate,
    cache: common.Cache = None,
    report: common.Report = None,
    json: common.Json = False,
    device: common.Device = None,
    dtype: Annotated[DType, typer.Option(help="Precision of the CLIP; the record tells.")] = DType.float32,
    batch_size: common.BatchSize = 16,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode images.", show_default="one a core, at most 8")
    ] = None,
    draft: Annotated[bool, typer.Option("--draft", help="Decode large JPEGs smaller: quicker, not the same.")] = False,
) -> None:
    """Score images against texts; the definition is written with every score.

    Streams: memory does not grow with the number of images. An image or row of a table that cannot be read is named
    and skipped. What is scored survives a kill, for --resume. Under torchrun or accelerate launch, processes share the
    images.

    Example: clip-guidance score images/ --prompt "a red apple" --output scores.jsonl
    """
    if (paths and prompts_file) or not (paths or prompts_file):
        raise typer.BadParameter("give images or --prompts-file")
    if prompt is not None and not prompt.strip():
        raise typer.BadParameter("--prompt is empty")
    if output and output.suffix not in (".jsonl", ".csv", ".parquet"):
        raise typer.BadParameter(f"--output must end in .jsonl or .csv or .parquet, got {output.name}")
    if resume and not output:
        raise typer.BadParameter("--resume needs the --output to go on with")

    from clip_guidance.clip.embed_cache import EmbedCache
    from clip_guidance.metrics.job.processes import find_processes
    from clip_guidance.metrics.job.run import Options, Work

    given: Sequence[str | Path] = paths or [prompts_file or Path()]  # a Path is a file, whatever its name
    processes = find_processes(device)
    _check_input(given, prompts_file, output, processes)
    job = common.Job()
    with ExitStack() as stack:
        place = output or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "scores.jsonl"
        work = Work(place, processes)
        work.check(resume)
        stack.enter_context(work.locked())
        judges = _judges(model, definition, processes.device, dtype.value, long_prompts.value, draft)
        settings = {"threads": threads} if threads else {}
        kept = stack.enter_context(EmbedCache(cache)) if cache else None
        _score(_items(given, prompt), judges, work, Options(batch_size, draft=draft, cache=kept, **settings), job)
        work.finish()
        if processes.rank:
            return  # as if all went well: a launcher that sees a process fail ends the first one, which still writes
        if output:
            work.write()
        _print(work, judges, json, job)
        page = _page(work, job.failures) if report else None
        work.clear()
        if report and page:
            common.save_report(page, report)
    job.finish()


def _check_input(
    given: Sequence[str | Path], prompts_file: Path | None, output: Path | None, processes: Processes
) -> None:
    from clip_guidance.metrics.job.items import STDIN, check_table, is_table
    from clip_guidance.metrics.job.output import check_output

    if output:
        check_output(output)
    if prompts_file and not is_table(prompts_file):
        raise ValueError(f"{prompts_file}: expected a .csv, .tsv, .jsonl or .parquet file")
    if processes.count > 1 and not output:
        raise ValueError("several processes need --output, in a folder that all of them see")
    if processes.count > 1 and STDIN in given:
        raise ValueError("standard input cannot be shared among processes: put its lines into a .jsonl file")
    for path in map(Path, given):
        if is_table(path) and (path.is_file() or prompts_file):
            check_table(path)


def _items(given: Sequence[str | Path], prompt: str | None) -> Iterator[Item]:
    from clip_guidance.metrics.job.items import read_work

    return read_work(given, prompt, sys.stdin)


def _judges(
    models: list[str], definitions: list[str], device: str | None, dtype: str, long_prompts: Any, draft: bool
) -> list[Judge]:
    import torch

    from clip_guidance.metrics.job.judge import make_judge
    from clip_guidance.metrics.registry import get_image_score

    scores = [get_image_score(name) for name in dict.fromkeys(definitions)]  # before the models: quicker to refuse
    clips = [common.load_clip(name, device) for name in dict.fromkeys(models)]
    return [make_judge(clip, scores, long_prompts, getattr(torch, dtype), draft) for clip in clips]


def _score(items: Iterator[Item], judges: list[Judge], work: Work, options: Options, job: common.Job) -> None:
    """Scores until all is done or Ctrl-C is pressed; what was done then is written all the same."""
    from clip_guidance.metrics.job.run import score_items

    if work.torn():
        common.narrate("repaired", f"{work.output}: its last line was cut short; that score is computed again")
    work.begin(judges)
    repeated = 0
    with job, common.progress() as bar:
        task = bar.add_task("images", total=None)
        for done in score_items(items, judges, work, options):
            for failure in done.failures:
                job.fail(failure.image, failure.reason)
            repeated += done.repeated
            bar.advance(task, done.items)
    if repeated:
        common.narrate("note", f"{repeated} scores of pairs that are given more than once are there once")


def _print(work: Work, judges: list[Judge], json: bool, job: common.Job) -> None:
    """Prints the rows and the means, of all processes."""
    import torch

    from clip_guidance.metrics.job.store import WorkFile

    summaries = []
    with WorkFile(work.base) as base:
        for definition in (definition for judge in judges for definition in judge.definitions):
            summary = base.summary(definition.id)
            mean = None
            if summary.count:  # of one number, the mean is that number, clipped where the definition says so
                mean = definition.score.mean(torch.tensor([summary.arithmetic_mean], dtype=torch.float64))
            summaries.append((summary, mean))
        means = [{**s.record, "mean": mean, "count": s.count} for s, mean in summaries]
        job.failures = [{"path": failure.image, "reason": failure.reason} for failure in base.failures()]
        if json:
            _print_json(base, means, job.failures)
        else:
            _print_table(base, len(means) > 1)
    for summary, mean in summaries:
        if mean is not None:
            by = f"{summary.record['definition']} by {summary.record['model']}"
            common.narrate("mean", f"{mean:.4f} ({by}, n = {summary.count})")
    _narrate_marks([summary for summary, _ in summaries])


def _page(work: Work, failed: list[dict[str, str]]) -> Page:
    from clip_guidance.metrics.job.store import WorkFile
    from clip_guidance.report import Scores, scores

    def rows(wanted: str) -> Iterator[tuple[str, str, float]]:
        return ((row.image, row.prompt, row.score) for row, _ in base.rows() if row.record == wanted)

    with WorkFile(work.base) as base:
        records = base.records().items()
        return scores(*(Scores(rows(key), record["definition"], record) for key, record in records), failed=failed)


def _print_json(base: WorkFile, means: list[dict[str, Any]], failures: list[dict[str, str]]) -> None:
    """One document, its rows printed as they are read."""
    head: dict[str, Any] = {"scores": means}
    if len(means) == 1:
        record = {key: value for key, value in means[0].items() if key not in ("mean", "count")}
        head = {"definition": record, "mean": means[0]["mean"]}
    print(common.as_json(head, indent=2)[:-2] + ',\n  "results": [', end="")
    separator = "\n"
    for row, record in base.rows():
        own = {key: value for key, value in vars(row).items() if key not in ("record", "position")}
        names = {"definition": record["definition"], "model": record["model"]}
        print(separator + "    " + common.as_json({**own, **names}), end="")
        separator = ",\n"
    print('\n  ],\n  "failed": ' + common.as_json(failures) + "\n}")


def _print_table(base: WorkFile, several: bool) -> None:
    """Lines for other programs, all of them; on a terminal the first ones."""
    columns = ["image", "prompt", "score", *(["definition", "model"] if several else [])]
    rows = (
        (row.image, row.prompt, row.score, *((record["definition"], record["model"]) if several else ()))
        for row, record in base.rows()
    )
    if sys.stdout.isatty():
        common.print_table(columns, list(itertools.islice(rows, SHOWN)))
        if left := sum(1 for _ in rows):
            common.narrate("note", f"{left} more rows are not shown; --output keeps them")
        return
    common.print_lines(itertools.chain([columns], rows))


def _narrate_marks(summaries: list[Any]) -> None:
    """What a reader of the means must know."""
    guided = {s.record["model"]: s for s in summaries if s.guided}
    for name, summary in guided.items():
        which = f" ({name})" if len({s.record["model"] for s in summaries}) > 1 else ""
        common.narrate(
            "warning",
            f"{summary.guided} of {summary.count} images were guided by the very CLIP that scores them{which}, "
            "which flatters them; choose another --model",
        )
    if truncated := sum(summary.truncated for summary in summaries):
        total = sum(summary.count for summary in summaries)
        common.narrate("note", f"{truncated} of {total} scores are of a text that was cut (column truncated)")
