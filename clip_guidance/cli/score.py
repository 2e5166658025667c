"""``clip-guidance score``: how well does each image match its text?"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from clip_guidance.cli import _checks as checks
from clip_guidance.cli import _common as common
from clip_guidance.cli import _options as options
from clip_guidance.cli import _score_options as score_options
from clip_guidance.cli._score_print import print_scores

if TYPE_CHECKING:
    from clip_guidance.metrics.job.items import ScoreItem, TableColumns
    from clip_guidance.metrics.job.judge import Judge
    from clip_guidance.metrics.job.processes import Processes
    from clip_guidance.metrics.job.run import Job, Options
    from clip_guidance.report import Page


def command(
    paths: score_options.Scored = None,
    prompt: score_options.SharedPrompt = None,
    prompts_file: score_options.PromptsFile = None,
    image_column: score_options.ImageColumn = None,
    prompt_column: score_options.PromptColumn = None,
    definition: score_options.Definitions = None,
    model: score_options.Models = None,
    reward: score_options.Rewards = None,
    output: score_options.ScoresFile = None,
    resume: score_options.Resume = False,
    long_prompts: score_options.LongPromptsOption = score_options.LongPrompts.truncate,
    cache: options.Cache = None,
    report: options.Report = None,
    json: options.Json = False,
    device: options.Device = None,
    dtype: score_options.Precision = score_options.DType.float32,
    batch_size: options.BatchSize = 16,
    threads: score_options.Threads = None,
    draft: score_options.Draft = False,
) -> None:
    """Score images against texts by CLIPs and rewards; the definition is written with every score.

    Memory does not grow with the number of images. An image or table row that cannot be read is named and skipped.
    Scores survive a kill, for --resume. Under torchrun or accelerate launch, the processes share the images.

    The default CLIP knows emoji only: images unlike them are told, and need another --model.

    Example: clip-guidance score images/ --prompt "a red apple" --output scores.jsonl
    """
    checks.check_score(paths, prompts_file, prompt, output, resume)
    rewards = list(dict.fromkeys(reward or []))
    definitions, models = _of_clips(definition, model, rewards, long_prompts)
    given: Sequence[str | Path] = paths or [prompts_file or Path()]  # a Path is a file, whatever its name
    processes = _processes(device)
    columns = _columns(given, image_column, prompt_column)
    with _naming_options(columns):
        _check_input(given, prompts_file, output, processes, columns)
    job = common.Job()
    with _work(output, processes, resume) as work, _run_options(cache, batch_size, threads, draft) as run_options:
        judges = _clip_judges(models, definitions, processes.device, dtype.value, long_prompts.value, draft)
        judges += _reward_judges(rewards, processes.device, dtype.value, draft)
        with _naming_options(columns):
            _score(_items(given, prompt, columns), judges, work, run_options, job)
        work.finish()
        if processes.rank:
            return  # with exit code 0: a launcher that sees a process fail ends the first one, which is still writing
        done = _write(work, judges, output, report, json, job)
    job.finish(done)


def _processes(device: str | None) -> Processes:
    from clip_guidance.metrics.job.processes import find_processes

    return find_processes(device)


@contextmanager
def _work(output: Path | None, processes: Processes, resume: bool) -> Iterator[Job]:
    """Lock the output, or a temporary one, so that no other run writes it."""
    from clip_guidance.metrics.job.run import Job

    with ExitStack() as stack:
        place = output or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "scores.jsonl"
        work = Job(place, processes)
        stack.enter_context(work.locked())
        work.check(resume)  # while no other run holds the files that it speaks of
        yield work


@contextmanager
def _run_options(cache: Path | None, batch_size: int, threads: int | None, draft: bool) -> Iterator[Options]:
    """Open the cache, if one is asked for."""
    from clip_guidance.clip.embed_cache import EmbedCache
    from clip_guidance.metrics.job.run import Options

    settings = {"threads": threads} if threads else {}
    with EmbedCache(cache) if cache else nullcontext() as kept:
        yield Options(batch_size, draft=draft, cache=kept, **settings)


def _write(
    work: Job, judges: list[Judge], output: Path | None, report: Path | None, json: bool, job: common.Job
) -> int:
    """Write the output, print the rows and the means, and then the report, which may fail; count what has scores."""
    if output:
        work.write()
    done = print_scores(work, judges, output, json, job)
    page = _page(work, job.failures) if report else None
    work.clear()
    if report and page:
        common.save_report(page, report)
    return done


def _columns(given: Sequence[str | Path], image: str | None, prompt: str | None) -> TableColumns:
    """Return the columns that are asked for, which some input must have."""
    from clip_guidance.metrics.job.items import STDIN, TableColumns, is_table

    columns = TableColumns(image, prompt)
    if columns != TableColumns() and not any(path == STDIN or is_table(Path(path)) for path in given):
        option = "--image-column" if image is not None else "--prompt-column"
        raise typer.BadParameter(f"{option} is for tables (.csv, .tsv, .jsonl, .parquet) and for -")
    return columns


@contextmanager
def _naming_options(columns: TableColumns) -> Iterator[None]:
    """Name the options that ask for columns, where a table lacks one of them."""
    from clip_guidance.data import SourceError

    asked = {"--image-column": columns.image, "--prompt-column": columns.prompt}
    given = [option for option, value in asked.items() if value is not None]
    try:
        yield
    except SourceError as error:
        raise (ValueError(f"{' and '.join(given)}: {error}") if given else error) from None


def _check_input(
    given: Sequence[str | Path],
    prompts_file: Path | None,
    output: Path | None,
    processes: Processes,
    columns: TableColumns,
) -> None:
    from clip_guidance.metrics.job.items import STDIN, check_table, is_table
    from clip_guidance.metrics.job.tables import check_output

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
            check_table(path, columns)


def _items(given: Sequence[str | Path], prompt: str | None, columns: TableColumns) -> Iterator[ScoreItem]:
    from clip_guidance.metrics.job.items import read_items

    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are not UTF-8 cost their line alone
        sys.stdin.reconfigure(errors="surrogateescape")
    return read_items(given, prompt, sys.stdin, columns)


def _of_clips(
    definitions: list[str] | None, models: list[str] | None, rewards: list[str], long_prompts: score_options.LongPrompts
) -> tuple[list[str], list[str]]:
    """Return the definitions and the CLIPs that score; none where rewards alone are asked for."""
    if definitions or models or not rewards:
        definitions, models = definitions or [score_options.DEFINITION], models or [score_options.MODEL]
        return list(dict.fromkeys(definitions)), list(dict.fromkeys(models))
    if long_prompts is not score_options.LongPrompts.truncate:
        raise typer.BadParameter("--long-prompts is for the texts of CLIPs, and by --reward alone none of them scores")
    return [], []


def _clip_judges(
    models: list[str], definitions: list[str], device: str | None, dtype: str, long_prompts: Any, draft: bool
) -> list[Judge]:
    import torch

    from clip_guidance.metrics.job.judge import make_judge
    from clip_guidance.metrics.registry import get_image_score

    scores = [get_image_score(name) for name in definitions]  # before the models, which are slow to load
    clips = [common.load_clip(name, device) for name in models]
    return [make_judge(clip, scores, long_prompts, getattr(torch, dtype), draft) for clip in clips]


def _reward_judges(rewards: list[str], device: str | None, dtype: str, draft: bool) -> list[Judge]:
    if not rewards:
        return []
    import torch

    from clip_guidance.metrics.job.reward_judge import make_reward_judge

    loaded = [common.load_reward(name, device) for name in rewards]
    judges = [make_reward_judge(reward, getattr(torch, dtype), draft) for reward in loaded]
    return list({judge.definitions[0].id: judge for judge in judges}.values())  # a reward and its folder are one


def _score(items: Iterator[ScoreItem], judges: list[Judge], work: Job, options: Options, job: common.Job) -> None:
    """Score until all is done or Ctrl-C is pressed; the scores computed by then are kept."""
    from clip_guidance.metrics.job.run import score_items

    if work.torn():
        common.narrate("repaired", f"{work.output}: its last line was cut short; that score is computed again")
    work.begin(judges)
    repeated = 0
    with job, common.progress() as bar:
        count = work.processes.count
        task = bar.add_task("images" if count == 1 else f"images of the first of {count} processes", total=None)
        for done in score_items(items, judges, work, options):
            for failure in done.failures:
                job.fail(failure.image, failure.reason)
            repeated += done.repeated
            bar.advance(task, done.items)
    for judge in judges:
        judge.domain.warn()
    if repeated:
        common.narrate("note", f"{repeated} scores of pairs that are given more than once are there once")


def _page(work: Job, failed: list[dict[str, str]]) -> Page:
    from clip_guidance.metrics.job.store import ScoreStore
    from clip_guidance.report import Scores, scores

    def rows(wanted: str) -> Iterator[tuple[str, str, float]]:
        return ((row.image, row.prompt, row.score) for row, _ in base.rows() if row.record == wanted)

    with ScoreStore(work.base) as base:
        records = base.records().items()
        return scores(*(Scores(rows(key), record["definition"], record) for key, record in records), failed=failed)
