"""``clip-guidance search``: find indexed images by a text, an image, or a sum of both."""

from __future__ import annotations

from clip_guidance.cli import _common as common
from clip_guidance.cli import _options as options


def command(
    query: options.Query,
    index: options.Address,
    where: options.Where = None,
    top_k: options.TopImages = 10,
    model: options.IndexModel = None,
    cache: options.Cache = None,
    report: options.Report = None,
    json: options.Json = False,
    device: options.Device = None,
) -> None:
    """Find the images of an index that match best.

    Words are joined by spaces; a sign between spaces starts the next term, unless it stands in "quotes".

    Example: clip-guidance search "2 * red apple" - ./worm.png --index images.index --where "album = summer"
    """
    from clip_guidance.clip.domain import foreign_texts
    from clip_guidance.index import ImageIndex
    from clip_guidance.index.query import parse_query
    from clip_guidance.index.where import compile_where

    compile_where(where)  # an error in the filter is raised before the model is loaded
    words = " ".join(query)
    terms = [term.source for term in parse_query(words) if isinstance(term.source, str)]
    if model is None:
        with ImageIndex.open(index, create=False) as made:
            model = made.model
    clip = common.load_clip(model, device)
    if message := foreign_texts(model, terms, "terms"):
        common.narrate("warning", message)
    with common.caching(clip, cache) as encoder, ImageIndex.open(index, encoder, create=False) as opened:
        hits = opened.search(words, top_k, where)
        known = {"name": opened.model, "fingerprint": opened.fingerprint}
    if json:
        results = [{"image": hit.path, "similarity": hit.score, "metadata": hit.metadata} for hit in hits]
        common.print_json({"model": known, "query": words, "where": where, "results": results})
    else:
        common.print_table(["image", "similarity"], [[hit.path, hit.score] for hit in hits])
    if report is not None:
        from clip_guidance.index.address import public_address
        from clip_guidance.report import search

        facts = {"model": known["name"], "index": public_address(index), "where": where}
        common.save_report(search(words, hits, facts=facts), report)
