"""``clip-guidance classify``: which label describes each image best?"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clip_guidance.cli import _options as common

if TYPE_CHECKING:
    import torch

    from clip_guidance.zero_shot.classifier import ZeroShotClassifier

FOLDERS = "folders"


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
    multi_label: Annotated[bool, typer.Option("--multi-label", help="Several labels may hold, or none.")] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Give no label that is less likely.", show_default="0; 0.5 if several may hold"
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(help="CSV (image, label) of images that the probabilities shall fit.", show_default=False),
    ] = None,
    truth: Annotated[
        str | None,
        typer.Option(help='The right labels, to measure by: CSV (image, label), or "folders".', show_default=False),
    ] = None,
    model: common.Model = "emoji",
    top_k: Annotated[int, typer.Option(min=1, help="Labels shown for each image.")] = 1,
    cache: common.Cache = None,
    report: common.Report = None,
    json: common.Json = False,
    device: common.Device = None,
    batch_size: common.BatchSize = 16,
) -> None:
    """Classify images among labels that you give as text.

    The probabilities are relative to the labels offered.

    Example: clip-guidance classify photos/ --labels cat,dog,"guinea pig" --top-k 2
    """
    from clip_guidance.images.find import find_images

    found = find_images(paths)
    right = _truth(truth, found)
    chosen = [label for label in (labels or "").split(",") if labels]
    if labels_file is not None:
        chosen += [line for line in labels_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    chosen = chosen or sorted(set(right.values()))
    if not chosen:
        raise typer.BadParameter("give --labels or --labels-file")

    clip = common.load_clip(model, device)
    from clip_guidance.zero_shot.classifier import ZeroShotClassifier, ZeroShotResult
    from clip_guidance.zero_shot.templates import DEFAULT_TEMPLATES

    least = threshold if threshold is not None else 0.5 if multi_label else 0.0
    rows: list[dict[str, Any]] = []
    with common.caching(clip, cache) as encoder:
        classifier = ZeroShotClassifier(encoder, chosen, template or DEFAULT_TEMPLATES, multi_label=multi_label)
        classifier.numbers(list(right.values()))  # an unknown one is told before the work
        if calibrate is not None:
            sample = _read_labels(calibrate)
            common.narrate("calibrated", f"temperature {classifier.calibrate(list(sample), list(sample.values())):.3g}")
        results = [classifier.classify_embeds(classifier.class_embeds[:0])]  # of no image yet
        with common.Job() as job:
            for batch in job.encoded(encoder, found, batch_size):
                results.append(result := classifier.classify_embeds(batch.embeds))
                named = zip(batch.names, result.rows(top_k, least), strict=True)
                rows += [{"image": name, **row} for name, row in named]

    whole, known = ZeroShotResult.cat(results), _right_labels(rows, right)
    measured = _measure(classifier, whole.logits, known) if right else None
    if json:
        common.print_json(
            {
                "model": {"name": str(clip.name_or_path), "fingerprint": clip.fingerprint()},
                "labels": classifier.labels,
                "templates": classifier.templates,
                "temperature": classifier.temperature,
                "threshold": least,
                "results": rows,
                "metrics": measured,
                "failed": job.failures,
            }
        )
    else:
        common.print_table(["image", "label", "prob"], _lines(rows, multi_label, least))
        if measured is not None:
            shown = {name: value for name, value in measured.items() if name != "confusion" and value is not None}
            common.print_table(["measure", "value"], list(shown.items()))
    if report is not None:
        from clip_guidance.report import classification

        names, truths, k = [row["image"] for row in rows], known if right else None, max(5, top_k)
        facts = {"model": str(clip.name_or_path), "temperature": classifier.temperature}
        page = classification(whole, names, truth=truths, k=k, threshold=least, facts=facts, failed=job.failures)
        common.save_report(page, report)
    job.finish()


def _lines(rows: list[dict[str, Any]], multi_label: bool, least: float) -> list[tuple[Any, ...]]:
    """What the table shows: labels that are likely enough; "none" for an image without one."""
    lines = []
    for row in rows:
        kept = [entry for entry in row["top"] if entry["prob"] >= least]
        lines += [(row["image"], entry["label"], entry["prob"]) for entry in kept] or [
            (row["image"], "none", row["prob"])
        ]
    return lines


def _truth(given: str | None, found: list[Path]) -> dict[str, str]:
    """The right label by path; that of ``folders`` is the name of the folder that an image lies in."""
    if given is None:
        return {}
    return {str(path): path.resolve().parent.name for path in found} if given == FOLDERS else _read_labels(Path(given))


def _read_labels(path: Path) -> dict[str, str]:
    """The columns ``image`` and ``label`` of a CSV file; paths are relative to the file, unless that is no image."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"image", "label"} <= set(reader.fieldnames or ()):
            raise typer.BadParameter(f"{path}: expected the columns image, label; it has {reader.fieldnames or 'none'}")
        rows = [(row["image"], row["label"], reader.line_num) for row in reader]
    if not rows:
        raise typer.BadParameter(f"{path}: has no row")
    labels: dict[str, str] = {}
    for image, label, line in rows:
        if not image or not label or not label.strip():
            raise typer.BadParameter(f"{path}: line {line}: expected an image and a label, got {image!r} and {label!r}")
        name = str(beside if (beside := path.parent / image).is_file() else image)
        if labels.setdefault(name, label.strip()) != label.strip():
            raise typer.BadParameter(f"{path}: line {line}: {image} is {label.strip()}, but was {labels[name]} before")
    return labels


def _right_labels(rows: list[dict[str, Any]], right: dict[str, str]) -> list[str | None]:
    """The right label of each image, None where it is not known."""
    by_file = {Path(name).resolve(): label.strip() for name, label in right.items()}
    return [by_file.get(Path(row["image"]).resolve()) for row in rows]


def _measure(classifier: ZeroShotClassifier, logits: torch.Tensor, right: list[str | None]) -> dict[str, Any]:
    """Metrics of the images whose label is known; their count tells how many."""
    from clip_guidance.metrics.classification import average_precision, classification_metrics

    known = [i for i, label in enumerate(right) if label is not None]
    if not known:
        return {"count": 0}
    scores = logits[known]
    targets = classifier.numbers([label for label in right if label is not None])
    if classifier.multi_label:
        present = targets.unique().tolist()
        each = [average_precision(scores[:, label], targets == label) for label in present]
        return {"count": len(known), "mean_average_precision": sum(each) / len(each)}
    found = classification_metrics(scores, targets)
    return {
        "count": found.count,
        "top1": found.top1,
        "top5": found.top5,
        "mean_per_class_recall": found.mean_per_class_recall,
        "calibration_error": found.error,
        "confusion": found.confusion.tolist(),
    }
