"""``clip-guidance similar``: how alike are pictures?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clip_guidance.cli import common


def command(
    paths: common.Paths,
    to: Annotated[
        Path | None, typer.Option(help="Rank the pictures by likeness to this one.", show_default=False)
    ] = None,
    model: common.Model = "emoji",
    json: common.Json = False,
    device: common.Device = None,
    batch_size: common.BatchSize = 16,
) -> None:
    """Compare pictures with one another, or with one of them.

    Prints cosines of CLIP embeddings: 1 for the same picture.

    Example: clip-guidance similar photos/ --to query.png
    """
    import torch

    from clip_guidance.images import find_images, load_image

    clip = common.load_clip(model, device)
    query = None if to is None else clip.encode_image(load_image(to))
    embeds: dict[str, torch.Tensor] = {}
    with common.Job() as job:
        for batch in job.batches(find_images(paths), batch_size):
            embeds |= zip(batch.names, clip.encode_image(batch.images, batch_size=batch_size), strict=True)

    names = list(embeds)
    pictures = torch.stack(list(embeds.values())) if embeds else clip.encode_image([])
    document: dict[str, Any]
    if query is None:
        matrix = (pictures @ pictures.T).tolist()
        document = {"images": names, "similarity": matrix}
        columns, table = ["", *names], [[name, *row] for name, row in zip(names, matrix, strict=True)]
    else:
        cosines = zip(names, (pictures @ query[0]).tolist(), strict=True)
        ranking = sorted(cosines, key=lambda pair: -pair[1])
        document = {"to": str(to), "results": [{"image": name, "similarity": cos} for name, cos in ranking]}
        columns, table = ["image", "similarity"], [list(pair) for pair in ranking]

    if json:
        fingerprint = {"name": str(clip.name_or_path), "fingerprint": clip.fingerprint()}
        common.print_json({"model": fingerprint, **document, "failed": job.failures})
    else:
        common.print_table(columns, table)
    job.finish()
