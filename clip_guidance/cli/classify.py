"""``clip-guidance classify``: which label describes each image best?"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from clip_guidance.cli import _common as common
from clip_guidance.cli import _options as options

if TYPE_CHECKING:
    import torch

    from clip_guidance.clip import CLIP
    from clip_guidance.clip.embed_cache import EncodedBatch
    from clip_guidance.report import Page
    from clip_guidance.zero_shot.classifier import ZeroShotClassifier, ZeroShotResult

FOLDERS = "folders"


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
    report: options.Report = None,
    json: options.Json = False,
    device: options.Device = None,
    batch_size: options.BatchSize = 16,
) -> None:
    """Classify images among labels that you give as text.

    The probabilities are relative to the labels offered.

    Example: clip-guidance classify photos/ --labels cat,dog,"guinea pig" --top-k 2
    """
    from clip_guidance.images.find import find_images

    found = find_images(paths)
    right = _truth(truth, found)
    chosen = _labels(labels, labels_file) or sorted(set(right.values()))
    if not chosen:
        raise typer.BadParameter("give --labels or --labels-file")
    clip = common.load_clip(model, device)
    least = threshold if threshold is not None else 0.5 if multi_label else 0.0
    with common.caching(clip, cache) as encoder:
        classifier = _classifier(encoder, chosen, template, multi_label, right, calibrate)
        done = Classified(classifier, least)
        with common.Job() as job:
            for batch in job.encoded(encoder, found, batch_size):
                done.add(batch, top_k)
    _print(clip, done, right, json, job)
    if report is not None:
        common.save_report(_page(clip, done, right, max(5, top_k), job), report)
    job.finish()


class Classified:
    """The images classified so far.

    Attributes:
        classifier: What classifies them.
        least: Labels that are less likely are not given.
        results: The result of each batch; the first is of no image.
        rows: One dictionary for each image, as it is printed.
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


def _labels(labels: str | None, labels_file: Path | None) -> list[str]:
    chosen = [label for label in (labels or "").split(",") if labels]
    if labels_file is not None:
        chosen += [line for line in labels_file.read_text(encoding="utf-8").splitlines() if line.strip()]
    return chosen


def _classifier(
    clip: CLIP,
    labels: list[str],
    templates: list[str] | None,
    multi_label: bool,
    right: dict[str, str],
    calibrate: Path | None,
) -> ZeroShotClassifier:
    """Make the classifier and calibrate it, after a check that it knows all right labels."""
    from clip_guidance.zero_shot.classifier import ZeroShotClassifier
    from clip_guidance.zero_shot.templates import DEFAULT_TEMPLATES

    classifier = ZeroShotClassifier(clip, labels, templates or DEFAULT_TEMPLATES, multi_label=multi_label)
    classifier.numbers(list(right.values()))  # an unknown one is told before the work
    if calibrate is not None:
        sample = _read_labels(calibrate)
        common.narrate("calibrated", f"temperature {classifier.calibrate(list(sample), list(sample.values())):.3g}")
    return classifier


def _print(clip: CLIP, done: Classified, right: dict[str, str], json: bool, job: common.Job) -> None:
    """Print labels and, where the right ones are known, how good they are."""
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
    common.print_table(["image", "label", "prob"], _lines(done.rows, done.least))
    if measured is not None:
        shown = {name: value for name, value in measured.items() if name != "confusion" and value is not None}
        common.print_table(["measure", "value"], list(shown.items()))


def _page(clip: CLIP, done: Classified, right: dict[str, str], top_k: int, job: common.Job) -> Page:
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
    """Read the right label of each path; for ``folders`` it is the name of the folder that the image lies in."""
    if given is None:
        return {}
    return {str(path): path.resolve().parent.name for path in found} if given == FOLDERS else _read_labels(Path(given))


def _read_labels(path: Path) -> dict[str, str]:
    """Read the columns ``image`` and ``label`` of a CSV file; paths are relative to it where a file lies there."""
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
    """Find the right label of each image, None where it is not known."""
    by_file = {Path(name).resolve(): label.strip() for name, label in right.items()}
    return [by_file.get(Path(row["image"]).resolve()) for row in rows]


def _measure(classifier: ZeroShotClassifier, logits: torch.Tensor, right: list[str | None]) -> dict[str, Any]:
    """Compute the metrics of the images whose label is known; ``count`` tells how many they are."""
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
