"""``clip-guidance similar``: how similar are images, and which of them are near-duplicates?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from clip_guidance.cli import _checks as checks
from clip_guidance.cli import _common as common
from clip_guidance.cli import _options as options

if TYPE_CHECKING:
    import torch

    from clip_guidance.clip import DualEncoder
    from clip_guidance.report import Page

PRINTED = 20  # images whose matrix is printed
GROUPS = {"group": int, "image": str}


def command(
    paths: options.OptionalPaths = None,
    to: options.To = None,
    duplicates: options.Duplicates = None,
    index: options.IndexOfDuplicates = None,
    model: options.Model = "emoji",
    cache: options.Cache = None,
    output: options.Output = None,
    report: options.Report = None,
    json: options.Json = False,
    device: options.Device = None,
    batch_size: options.BatchSize = 16,
) -> None:
    """Compare images with one another, or with one of them, or find near-duplicates.

    The similarity is the cosine of CLIP embeddings: 1 for the same image. The matrix of more than 20 images goes to a
    file.

    Example: clip-guidance similar images/ --to query.png
    """
    checks.check_similar(paths, to, duplicates, index, cache)
    if index is not None and duplicates is not None:
        _print_duplicates_of_index(index, duplicates, output, json, report)
        return
    images = _find(paths or [])
    matrix = to is None and duplicates is None
    if matrix and len(images) > PRINTED and not (json or output or report):
        cures = "give --output FILE.csv, --to IMAGE or --duplicates COSINE"
        raise typer.BadParameter(f"the matrix of {len(images):,} images is too large to print: {cures}")
    clip = common.load_clip(model, device)
    embeds: dict[str, torch.Tensor] = {}
    with common.caching(clip, cache) as encoder:
        query = None if to is None else _query(encoder, to)
        with common.Job() as job:
            for batch in job.encoded(encoder, images, batch_size):
                embeds |= zip(batch.names, batch.embeds, strict=True)
    found = _compare(clip, embeds, to, query, duplicates)
    if json:
        fingerprint = {"name": str(clip.name_or_path), "fingerprint": clip.fingerprint()}
        common.print_json({"model": fingerprint, **found.document, "failed": job.failures})
    if output is not None:
        common.write_rows(output, found.columns, found.lines, job)
    elif to is not None and not json:
        common.print_rows(found.columns, found.lines, job)
    elif not json and (not matrix or len(images) <= PRINTED):
        common.print_table(list(found.columns), found.lines)
    if report is not None:
        facts = {"model": str(clip.name_or_path), "least cosine": duplicates}
        common.save_report(_page(found.document, facts, job.failures), report)
    job.finish(len(embeds), len(images))


@dataclass(frozen=True)
class Found:
    """The result of a comparison.

    Attributes:
        document: The result as --json prints it.
        columns: Columns of the table, with the types of their values.
        lines: Rows of the table.
    """

    document: dict[str, Any]
    columns: dict[str, type]
    lines: list[list[Any]]


def _query(clip: DualEncoder, to: Path) -> torch.Tensor:
    """Encode the image of --to."""
    from clip_guidance.images.load import ImageError

    try:
        return clip.encode_image(to)
    except ImageError:  # names the file itself
        raise
    except ValueError as error:
        raise ValueError(f"{to}: {error}") from error


def _find(paths: list[Path]) -> list[Path]:
    from clip_guidance.images.find import find_images

    return find_images(paths)


def _compare(
    clip: DualEncoder,
    embeds: dict[str, torch.Tensor],
    to: Path | None,
    query: torch.Tensor | None,
    duplicates: float | None,
) -> Found:
    """Group near-duplicates, compare all images pairwise, or rank them by similarity to one."""
    import torch

    from clip_guidance.index.duplicates import duplicate_groups

    names = list(embeds)
    images = torch.stack(list(embeds.values())) if embeds else torch.empty(0, clip.projection_dim)
    if duplicates is not None:
        groups = [[names[i] for i in group] for group in duplicate_groups(images.cpu().numpy(), duplicates)]
        return Found({"duplicates": groups}, GROUPS, _lines(groups))
    if query is None:
        matrix = (images @ images.T).tolist()
        rows = [[name, *row] for name, row in zip(names, matrix, strict=True)]
        columns = {"image": str, **dict.fromkeys(names, float)}
        return Found({"images": names, "similarity": matrix}, columns, rows)
    cosines = zip(names, (images @ query[0]).tolist(), strict=True)
    ranking = sorted(cosines, key=lambda pair: -pair[1])
    results = [{"image": name, "similarity": cosine} for name, cosine in ranking]
    columns = {"image": str, "similarity": float}
    return Found({"to": str(to), "results": results}, columns, [list(pair) for pair in ranking])


def _page(document: dict[str, Any], facts: dict[str, Any], failed: list[dict[str, str]]) -> Page:
    """Make the report of the document that --json prints."""
    from clip_guidance.report import duplicates, ranking, similarity

    if "duplicates" in document:
        return duplicates(document["duplicates"], facts=facts, failed=failed)
    if "similarity" in document:
        return similarity(document["similarity"], document["images"], facts=facts, failed=failed)
    names, cosines = ([row[of] for row in document["results"]] for of in ("image", "similarity"))
    return ranking(names, cosines, to=document["to"], facts=facts, failed=failed)


def _print_duplicates_of_index(
    address: str, threshold: float, output: Path | None, json: bool, report: Path | None
) -> None:
    from clip_guidance.index import ImageIndex
    from clip_guidance.index.address import public_address

    with ImageIndex.open(address, create=False) as opened:
        groups = opened.duplicates(threshold)
        known = {"name": opened.model, "fingerprint": opened.fingerprint}
    if json:
        common.print_json({"model": known, "duplicates": groups})
    if output is not None:
        common.write_rows(output, GROUPS, _lines(groups), common.Job())
    elif not json:
        common.print_table(list(GROUPS), _lines(groups))
    if report is not None:
        facts = {"model": opened.model, "index": public_address(address), "least cosine": threshold}
        common.save_report(_page({"duplicates": groups}, facts, []), report)


def _lines(groups: list[list[str]]) -> list[list[Any]]:
    return [[number, name] for number, group in enumerate(groups, 1) for name in group]
