"""``clip-guidance classify``: which label describes each image best?"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from clip_guidance.cli import _common as common
from clip_guidance.cli import _options as options

if TYPE_CHECKING:
    import torch

    from clip_guidance.clip import DualEncoder
    from clip_guidance.clip.embed_cache import EncodedBatch
    from clip_guidance.report import Page
    from clip_guidance.zero_shot.classifier import ZeroShotClassifier, ZeroShotResult

FOLDERS = "folders"
COLUMNS = {"image": str, "label": str, "prob": float}


def command(
    paths: options.Paths,
    labels: options.Labels = None,
    labels_file: options.LabelsFile = None,
    template: options.Templates = None,
    multi_label: options.MultiLabel = False,
    threshold: options.Threshold = None,
    calibrate: options.Calibrate = None,
    truth: options.Truth = None,
    model: options.Model = "emoji",
    top_k: options.TopLabels = 1,
    cache: options.Cache = None,
    output: options.Output = None,
    report: options.Report = None,
    json: options.Json = False,
    device: options.Device = None,
    batch_size: options.BatchSize = 16,
) -> None:
    """Classify images among labels that you give as text.

    The probabilities are relative to the labels offered.

    Example: clip-guidance classify images/ --labels "rocket, red apple, dog face" --top-k 2
    """
    from clip_guidance.images.find import find_images

    found = find_images(paths)
    right = _truth(truth, found)
    chosen = _chosen(labels, labels_file, right)
    clip = common.load_clip(model, device)
    least = threshold if threshold is not None else 0.5 if multi_label else 0.0
    with common.caching(clip, cache) as encoder:
        classifier = _classifier(encoder, chosen, template, multi_label, right, calibrate)
        done = Classified(classifier, least)
        with common.Job() as job:
            for batch in job.encoded(encoder, found, batch_size):
                done.add(batch, top_k)
    if output is not None:
        common.write_rows(output, COLUMNS, _lines(done.rows, done.least), job)
    _print(clip, done, right, json, output is None, job)
    if report is not None:
        common.save_report(_page(clip, done, right, max(5, top_k), job), report)
    job.finish(len(done.rows), len(found))


class Classified:
    """The images classified so far.

    Attributes:
        classifier: What classifies them.
        least: Least probability of a label that is given.
        results: The result of each batch; the first one is empty, so that there is always one to join.
        rows: One dictionary per image, as it is printed.
    """

    def __init__(self, classifier: ZeroShotClassifier, least: float) -> None:
        self.classifier, self.least = classifier, least
        self.results = [classifier.classify_embeds(classifier.class_embeds[:0])]
        self.rows: list[dict[str, Any]] = []

    def add(self, batch: EncodedBatch, top_k: int) -> None:
        """Classify a batch of embeddings."""
        result = self.classifier.classify_embeds(batch.embeds)
        self.results.append(result)
        named = zip(batch.names, result.rows(top_k, self.least), strict=True)
        self.rows += [{"image": name, **row} for name, row in named]

    def whole(self) -> ZeroShotResult:
        """Join the results of all batches."""
        return type(self.results[0]).cat(self.results)


def _chosen(labels: str | None, labels_file: Path | None, right: dict[str, str]) -> list[str]:
    """Return the labels to choose from: those given, else those of the truth."""
    if found := _labels(labels, labels_file) or sorted(set(right.values())):
        return found
    raise typer.BadParameter("give --labels or --labels-file")


def _labels(labels: str | None, labels_file: Path | None) -> list[str]:
    chosen = []
    if labels:
        from clip_guidance.zero_shot.labels import parse_labels  # imports torch: not for a request without labels

        chosen = parse_labels(labels)
    if labels_file is not None:
        chosen += [line for line in _read_text(labels_file).splitlines() if line.strip()]
    return chosen


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got byte {error.object[error.start]:#x}") from None


def _classifier(
    clip: DualEncoder,
    labels: list[str],
    templates: list[str] | None,
    multi_label: bool,
    right: dict[str, str],
    calibrate: Path | None,
) -> ZeroShotClassifier:
    """Make the classifier, check that it knows all true labels, and calibrate it if asked to."""
    from clip_guidance.clip.domain import foreign_texts
    from clip_guidance.zero_shot.classifier import ZeroShotClassifier
    from clip_guidance.zero_shot.templates import DEFAULT_TEMPLATES

    classifier = ZeroShotClassifier(clip, labels, templates or DEFAULT_TEMPLATES, multi_label=multi_label)
    classifier.numbers(list(right.values()))  # an unknown label is an error before the work begins
    if message := foreign_texts(clip.name_or_path, labels, "labels"):
        common.narrate("warning", message)
    if calibrate is not None:
        sample = _read_labels(calibrate)
        common.narrate("calibrated", f"temperature {classifier.calibrate(list(sample), list(sample.values())):.3g}")
    return classifier


def _print(
    clip: DualEncoder, done: Classified, right: dict[str, str], json: bool, rows: bool, job: common.Job
) -> None:
    """Print labels, unless a file has the rows, and the metrics, where the true labels are known."""
    classifier = done.classifier
    measured = _measure(classifier, done.whole().logits, _right_labels(done.rows, right)) if right else None
    if json:
        common.print_json(
            {
                "model": {"name": str(clip.name_or_path), "fingerprint": clip.fingerprint()},
                "labels": classifier.labels,
                "templates": classifier.templates,
                "temperature": classifier.temperature,
                "threshold": done.least,
                "results": done.rows,
                "metrics": measured,
                "failed": job.failures,
            }
        )
        return
    if rows:
        common.print_rows(COLUMNS, _lines(done.rows, done.least), job)
    if measured is not None:
        shown = {name: value for name, value in measured.items() if name != "confusion" and value is not None}
        common.print_table(["measure", "value"], list(shown.items()))


def _page(clip: DualEncoder, done: Classified, right: dict[str, str], top_k: int, job: common.Job) -> Page:
    """Make the report of what is printed."""
    from clip_guidance.report import classification

    names = [row["image"] for row in done.rows]
    truth = _right_labels(done.rows, right) if right else None
    facts = {"model": str(clip.name_or_path), "temperature": done.classifier.temperature}
    return classification(
        done.whole(), names, truth=truth, k=top_k, threshold=done.least, facts=facts, failed=job.failures
    )


def _lines(rows: list[dict[str, Any]], least: float) -> list[tuple[Any, ...]]:
    """List the labels that are likely enough, and "none" for an image without one."""
    lines = []
    for row in rows:
        kept = [entry for entry in row["top"] if entry["prob"] >= least]
        lines += [(row["image"], entry["label"], entry["prob"]) for entry in kept] or [
            (row["image"], "none", row["prob"])
        ]
    return lines


def _truth(given: str | None, found: list[Path]) -> dict[str, str]:
    """Read the true label of each path; for ``folders``, the name of the image's folder."""
    if given is None:
        return {}
    return {str(path): path.resolve().parent.name for path in found} if given == FOLDERS else _read_labels(Path(given))


def _read_labels(path: Path) -> dict[str, str]:
    """Read ``image`` and ``label`` of a CSV file; an image path may be relative to its folder."""
    lines = csv.reader(io.StringIO(_read_text(path), newline=""), skipinitialspace=True)
    try:
        header = [name.strip() for name in next(lines, [])]
        if not {"image", "label"} <= set(header):
            raise ValueError(f"{path}: expected the columns image, label; it has {header or 'none'}")
        rows = [(dict(zip(header, fields, strict=False)), lines.line_num) for fields in lines if fields]
    except csv.Error as error:
        raise ValueError(f"{path}: line {lines.line_num}: {error}") from None
    if not rows:
        raise ValueError(f"{path}: has no row")
    labels: dict[str, str] = {}
    for row, line in rows:
        image, label = row.get("image"), row.get("label")
        if not image or not label or not label.strip():
            raise ValueError(f"{path}: line {line}: expected an image and a label, got {image!r} and {label!r}")
        name = str(beside if (beside := path.parent / image).is_file() else image)
        if labels.setdefault(name, label.strip()) != label.strip():
            raise ValueError(f"{path}: line {line}: {image} is {label.strip()}, but was {labels[name]} before")
    return labels


def _right_labels(rows: list[dict[str, Any]], right: dict[str, str]) -> list[str | None]:
    """Find the true label of each image; None where it is unknown."""
    by_file = {Path(name).resolve(): label.strip() for name, label in right.items()}
    return [by_file.get(Path(row["image"]).resolve()) for row in rows]


def _measure(classifier: ZeroShotClassifier, logits: torch.Tensor, right: list[str | None]) -> dict[str, Any]:
    """Compute the metrics over the images with a true label; ``count`` is their number."""
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
