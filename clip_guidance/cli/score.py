"""``clip-guidance score``: how well does each picture match its text?"""

from __future__ import annotations

import csv
import io
import json as json_library
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from clip_guidance.cli import common
from clip_guidance.generate import read_record


def command(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Pictures, folders of pictures, or globs.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="The text for all pictures.", show_default="the prompt stored by generate"),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(help="CSV or JSONL with the columns image and prompt, instead of PATHS.", show_default=False),
    ] = None,
    definition: Annotated[
        str, typer.Option(help="torchmetrics (100·cos), hessel (2.5·max(cos, 0), prefixed) or cosine.")
    ] = "torchmetrics",
    model: common.Model = "emoji-judge",
    output: Annotated[
        Path | None, typer.Option(help="Also write .jsonl or .csv, as pictures are done.", show_default=False)
    ] = None,
    json: common.Json = False,
    device: common.Device = None,
    batch_size: common.BatchSize = 16,
) -> None:
    """Score pictures against texts; the definition is written with every score.

    Example: clip-guidance score pictures/ --prompt "a red apple" --output scores.jsonl
    """
    if (paths and prompts_file) or not (paths or prompts_file):
        raise typer.BadParameter("give pictures or --prompts-file")
    if prompt and prompts_file:
        raise typer.BadParameter("give --prompt or --prompts-file")
    if output and output.suffix not in (".jsonl", ".csv"):
        raise typer.BadParameter(f"--output must end in .jsonl or .csv, got {output.name}")
    if output and output.exists():
        raise typer.BadParameter(f"--output {output} exists; scores are never overwritten")

    import torch

    from clip_guidance.images import find_images
    from clip_guidance.score import clip_score, get_definition

    wanted = get_definition(definition)
    clip = common.load_clip(model, device)
    record = wanted.record(clip)
    rows: list[dict[str, Any]] = []
    with ExitStack() as files, common.Job() as job:
        file = files.enter_context(output.open("x", encoding="utf-8", newline="")) if output else None
        pairs = read_pairs(prompts_file) if prompts_file else []
        known = pairs or _with_prompts(find_images(paths or []), prompt, job)
        for batch in job.batches([path for path, _ in known], batch_size):
            prompts = [known[index][1] for index in batch.indices]
            scores = clip_score(clip, batch.images, prompts, wanted, batch_size=batch_size).tolist()
            done = [
                {"image": name, "prompt": text, "score": score, "guided": _guided_by(name, record), **record}
                for name, text, score in zip(batch.names, prompts, scores, strict=True)
            ]
            rows += done
            if file:
                _append(file, done, header=len(rows) == len(done))
    mean = wanted.mean(torch.tensor([row["score"] for row in rows])) if rows else None
    if json:
        own = [{key: value for key, value in row.items() if key not in record} for row in rows]
        common.print_json({"definition": record, "mean": mean, "results": own, "failed": job.failures})
    else:
        table = [(row["image"], row["prompt"], row["score"]) for row in rows]
        common.print_table(["image", "prompt", "score"], table)
    _narrate_mean(rows, mean, record)
    job.finish()


def read_pairs(path: Path) -> list[tuple[Path, str]]:
    """Pictures and texts from a CSV or JSONL file; relative paths start at the file's folder.

    Raises:
        ValueError: it is neither, or a row lacks ``image`` or ``prompt``.
    """
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path}: expected a .csv or .jsonl file")
    rows: Iterable[Any] = csv.DictReader(io.StringIO(text, newline=""))
    if path.suffix == ".jsonl":
        rows = map(_parsed, text.splitlines())
    pairs = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not (row.get("image") and row.get("prompt")):
            raise ValueError(f"{path}: row {number} has no image or no prompt")
        pairs.append((path.parent / row["image"], row["prompt"]))
    return pairs


def _parsed(line: str) -> Any:
    try:
        return json_library.loads(line)
    except json_library.JSONDecodeError:
        return None  # refused like a row without an image, by its number


def _with_prompts(paths: list[Path], prompt: str | None, job: common.Job) -> list[tuple[Path, str]]:
    """Each picture with the text given, or the one that ``generate`` stored in it; else it fails by name."""
    if prompt:
        return [(path, prompt) for path in paths]
    pairs = []
    for path in paths:
        settings = (read_record(path) or {}).get("settings", {})
        if text := settings.get("clip_prompt") or settings.get("prompt"):
            pairs.append((path, text))
        else:
            job.fail(str(path), _unreadable(path) or "holds no prompt; give --prompt or --prompts-file")
    return pairs


def _unreadable(path: Path) -> str | None:
    from clip_guidance.images import ImageError, load_image

    try:
        load_image(path)
    except ImageError as error:
        return error.reason
    return None


def _guided_by(name: str, record: dict[str, Any]) -> bool:
    """Whether the CLIP that scores the picture also steered it."""
    guide = (read_record(name) or {}).get("guide") or {}
    return guide.get("fingerprint") == record["fingerprint"]


def _append(file: TextIO, rows: list[dict[str, Any]], header: bool) -> None:
    if file.name.endswith(".csv"):
        writer = csv.DictWriter(file, rows[0])
        if header:
            writer.writeheader()
        writer.writerows(rows)
    else:
        file.writelines(json_library.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.flush()  # an interrupted run keeps what it has done


def _narrate_mean(rows: list[dict[str, Any]], mean: float | None, record: dict[str, Any]) -> None:
    if mean is not None:
        common.narrate("mean", f"{mean:.4f} ({record['definition']} by {record['model']}, n = {len(rows)})")
    if guided := sum(row["guided"] for row in rows):
        common.narrate(
            "warning",
            f"{guided} of {len(rows)} pictures were guided by the very CLIP that scores them, "
            "which flatters them; choose another --model",
        )
