"""``clip-guidance similar``: how alike are images, and which of them are near-duplicates?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clip_guidance.cli import _options as common

if TYPE_CHECKING:
    from clip_guidance.report import Page


def command(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Images, folders of images, or globs.", show_default=False)
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Rank the images by likeness to this one.", show_default=False)
    ] = None,
    duplicates: Annotated[
        float | None,
        typer.Option(help="Group images whose cosine is at least this, such as 0.95.", show_default=False),
    ] = None,
    index: Annotated[
        str | None, typer.Option(help="With --duplicates: the images of this index.", show_default=False)
    ] = None,
    model: common.Model = "emoji",
    cache: common.Cache = None,
    report: common.Report = None,
    json: common.Json = False,
    device: common.Device = None,
    batch_size: common.BatchSize = 16,
) -> None:
    """Compare images with one another, or with one of them, or find near-duplicates.

    Prints cosines of CLIP embeddings: 1 for the same image.

    Example: clip-guidance similar photos/ --to query.png
    """
    if duplicates is not None and to is not None:
        raise typer.BadParameter("give --to or --duplicates")
    if index is not None:
        if duplicates is None or paths:
            raise typer.BadParameter("--index takes --duplicates and no images")
        if cache is not None:
            raise typer.BadParameter("--index takes no --cache: the embeddings are in the index")
        _print_duplicates_of_index(index, duplicates, json, report)
        return
    if not paths:
        raise typer.BadParameter("give images, or --index and --duplicates")
    import torch

    from clip_guidance.images.load import find_images
    from clip_guidance.index.duplicates import duplicate_groups

    clip = common.load_clip(model, device)
    embeds: dict[str, torch.Tensor] = {}
    with common.caching(clip, cache) as encoder:
        query = None if to is None else encoder.encode_image(to)
        with common.Job() as job:
            for batch in job.encoded(encoder, find_images(paths), batch_size):
                embeds |= zip(batch.names, batch.embeds, strict=True)

    names = list(embeds)
    images = torch.stack(list(embeds.values())) if embeds else clip.encode_image([])
    document: dict[str, Any]
    if duplicates is not None:
        groups = [[names[i] for i in group] for group in duplicate_groups(images.cpu().numpy(), duplicates)]
        document, columns, table = {"duplicates": groups}, ["group", "image"], _lines(groups)
    elif query is None:
        matrix = (images @ images.T).tolist()
        document = {"images": names, "similarity": matrix}
        columns, table = ["", *names], [[name, *row] for name, row in zip(names, matrix, strict=True)]
    else:
        cosines = zip(names, (images @ query[0]).tolist(), strict=True)
        ranking = sorted(cosines, key=lambda pair: -pair[1])
        document = {"to": str(to), "results": [{"image": name, "similarity": cos} for name, cos in ranking]}
        columns, table = ["image", "similarity"], [list(pair) for pair in ranking]

    if json:
        fingerprint = {"name": str(clip.name_or_path), "fingerprint": clip.fingerprint()}
        common.print_json({"model": fingerprint, **document, "failed": job.failures})
    else:
        common.print_table(columns, table)
    if report is not None:
        facts = {"model": str(clip.name_or_path), "least cosine": duplicates}
        common.save_report(_page(document, facts, job.failures), report)
    job.finish()


def _page(document: dict[str, Any], facts: dict[str, Any], failed: list[dict[str, str]]) -> Page:
    """The report of what is printed as JSON."""
    from clip_guidance.report import duplicates, ranking, similarity

    if "duplicates" in document:
        return duplicates(document["duplicates"], facts=facts, failed=failed)
    if "similarity" in document:
        return similarity(document["similarity"], document["images"], facts=facts, failed=failed)
    names, cosines = ([row[of] for row in document["results"]] for of in ("image", "similarity"))
    return ranking(names, cosines, to=document["to"], facts=facts, failed=failed)


def _print_duplicates_of_index(address: str, threshold: float, json: bool, report: Path | None) -> None:
    from clip_guidance.index import ImageIndex

    with ImageIndex.open(address, create=False) as opened:
        groups = opened.duplicates(threshold)
        known = {"name": opened.model, "fingerprint": opened.fingerprint}
    if json:
        common.print_json({"model": known, "duplicates": groups})
    else:
        common.print_table(["group", "image"], _lines(groups))
    if report is not None:
        facts = {"model": opened.model, "index": address, "least cosine": threshold}
        common.save_report(_page({"duplicates": groups}, facts, []), report)


def _lines(groups: list[list[str]]) -> list[list[Any]]:
    return [[number, name] for number, group in enumerate(groups, 1) for name in group]
