"""What ``generate`` prints of its images, and how it compares one with itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_guidance.cli import _common as common

if TYPE_CHECKING:
    from clip_guidance.generation.image import GeneratedImage


def compare_image(generated: GeneratedImage, original: Path) -> None:
    """Say whether an image came out as it was; one of a batch rounds differently when it is drawn alone."""
    from PIL import ImageChops

    from clip_guidance.images.decoders import open_image
    from clip_guidance.images.metadata import read_record

    with open_image(original) as image:
        former = image.convert("RGB")
    if former.tobytes() == generated.image.tobytes():
        common.narrate("same", f"{original} was drawn again bit for bit")
        return
    together = (read_record(original) or {}).get("batch_size", 1)
    if together != 1 and former.size == generated.image.size:
        extrema: Any = ImageChops.difference(former, generated.image.convert("RGB")).getextrema()
        most = max(high for _, high in extrema)
        what = f"it was one of {together} drawn together, which round differently"
        common.narrate("same", f"{original} was drawn again to within {most}/255: {what}")
    else:
        common.narrate("warning", f"{original} came out differently; models, versions or device have changed")


def print_images(rows: list[dict[str, Any]], json: bool) -> None:
    """Print the images with their scores, as a table or as JSON with all that is on record."""
    if json:
        common.print_json(rows)
        return
    by = list(dict.fromkeys(_judge(score) for row in rows for score in row["scores"]))
    place = ["rank", "reward"] if any("choice" in row for row in rows) else []
    scale = ["calibrated_scale"] if any("calibrated_scale" in row for row in rows) else []
    table = []
    for row in rows:
        scores = {_judge(score): score["score"] for score in row["scores"]}
        settings = row["settings"]
        cells = [row["image"], settings["prompt"], settings["seed"]]
        cells += [row.get("choice", {}).get(name, "") for name in place]
        cells += [row.get(name, "") for name in scale]
        table.append((*cells, *(scores.get(judge, "") for judge in by)))
    common.print_table(["image", "prompt", "seed", *place, *scale, *by], table)


def _judge(score: Mapping[str, Any]) -> str:
    definition = "100·cos" if score["definition"] == "torchmetrics" else score["definition"]
    return f"{definition} by {score['model']}"


def save_report(rows: list[dict[str, Any]], job: common.Job, report: Path) -> None:
    """Write the HTML page of the images."""
    from clip_guidance.report import generated

    common.save_report(generated(rows, failed=job.failures), report)
