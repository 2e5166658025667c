"""``clip-guidance classify``: which label describes each picture best?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clip_guidance.cli import common


def command(
    paths: common.Paths,
    labels: Annotated[str | None, typer.Option(help="Labels, separated by commas.", show_default=False)] = None,
    labels_file: Annotated[
        Path | None, typer.Option(help="A text file with one label a line.", show_default=False)
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help="A sentence with {} for the label; repeat to average.", show_default="five sentences"),
    ] = None,
    model: common.Model = "emoji",
    top_k: Annotated[int, typer.Option(min=1, help="Labels shown for each picture.")] = 1,
    json: common.Json = False,
    device: common.Device = None,
    batch_size: common.BatchSize = 16,
) -> None:
    """Classify pictures among labels that you give as text.

    The probabilities are relative to the labels offered.

    Example: clip-guidance classify photos/ --labels cat,dog,"guinea pig" --top-k 2
    """
    chosen = [label for label in (labels or "").split(",") if labels]
    if labels_file is not None:
        chosen += [line for line in labels_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not chosen:
        raise typer.BadParameter("give --labels or --labels-file")

    from clip_guidance.images import find_images
    from clip_guidance.zero_shot import DEFAULT_TEMPLATES, ZeroShotClassifier

    clip = common.load_clip(model, device)
    classifier = ZeroShotClassifier(clip, chosen, template or DEFAULT_TEMPLATES)
    rows: list[dict[str, Any]] = []
    with common.Job() as job:
        for batch in job.batches(find_images(paths), batch_size):
            result = classifier(batch.images, batch_size=batch_size)
            rows += [{"image": name, **row} for name, row in zip(batch.names, result.rows(top_k), strict=True)]

    if json:
        common.print_json(
            {
                "model": {"name": str(clip.name_or_path), "fingerprint": clip.fingerprint()},
                "labels": classifier.labels,
                "templates": classifier.templates,
                "results": rows,
                "failed": job.failures,
            }
        )
    else:
        table = [(row["image"], entry["label"], entry["prob"]) for row in rows for entry in row["top"]]
        common.print_table(["image", "label", "prob"], table)
    job.finish()
