"""Reports of generated images: each with its prompt and scores, and the settings that all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from clip_guidance.generation.best_of import SearchResult
from clip_guidance.generation.image import GeneratedImage
from clip_guidance.report.html import parts
from clip_guidance.report.html.page import Page
from clip_guidance.report.html.parts import Card
from clip_guidance.report.notebook import result_parts

IN_CARDS = ("prompt", "seed")


def generated(rows: Sequence[Mapping[str, Any]], *, failed: Sequence[Mapping[str, str]] = ()) -> Page:
    """Make a page of generated images.

    Args:
        rows: One mapping per image: ``image``, as for ``load_image``, and what ``GeneratedImage.record`` returns.
        failed: Images that could not be generated: ``path`` and ``reason``.

    Example:
        >>> from clip_guidance import report
        >>> from PIL import Image
        >>> record = {"settings": {"prompt": "a red apple", "seed": 7}, "scores": [], "device": "cpu", "versions": {}}
        >>> page = report.generated([{"image": Image.new("RGB", (64, 64), "red"), **record}])
        >>> "a red apple" in page.to_html(), "seed 7" in page.to_html()
        (True, True)
    """
    settings = [dict(row["settings"]) for row in rows]
    names = [name for name in dict.fromkeys(name for one in settings for name in one) if name not in IN_CARDS]
    shared = {name for name in names if len({repr(one.get(name)) for one in settings}) == 1}
    chosen = rows[: parts.MAX_IMAGES]
    cards = [_card(row, [name for name in names if name not in shared]) for row in chosen]
    note = f"{parts.shown(len(chosen), len(rows))}. Scores without a name are 100 · cosine; all are rounded to 0.001."
    about = {name: settings[0][name] for name in names if name in shared}
    made = {"device": rows[0]["device"], **rows[0]["versions"]} if rows else {}
    return Page(
        "Drawn images",
        (
            parts.section("Images", parts.gallery(cards), note),
            parts.section("Settings of all", parts.facts({**about, **made})),
            *parts.failures(failed),
        ),
    )


@result_parts.register
def image_parts(image: GeneratedImage) -> tuple[Markup, ...]:
    """Draw one image with its scores and settings."""
    return generated([{"image": image.image, **image.record()}]).parts


@result_parts.register
def search_parts(found: SearchResult) -> tuple[Markup, ...]:
    """Draw the images of a search, best first, with their rewards and seeds."""
    ranked = list(zip(found.images, found.rewards, found.seeds, strict=True))[: parts.MAX_IMAGES]
    cards = [Card(image, value=f"{reward:.3f}", lines=(f"seed {seed}",)) for image, reward, seed in ranked]
    note = f"{parts.shown(len(cards), len(found.images))}, best first. Rewards are rounded to 0.001."
    failed = [{"path": f"seed {each.seed}", "reason": each.reason} for each in found.failed]
    return (parts.section("Images", parts.gallery(cards), note), *parts.failures(failed))


def _card(row: Mapping[str, Any], own: Sequence[str]) -> Card:
    settings = row["settings"]
    lines = [settings["prompt"], f"seed {settings['seed']}"]
    lines += [f"{name} {settings[name]}" for name in own if settings.get(name) not in (None, "")]
    lines += [_place(row["choice"])] if "choice" in row else []
    lines += [_score(one) for one in row["scores"]]
    return Card(row["image"], lines=tuple(lines))


def _place(choice: Mapping[str, Any]) -> str:
    by = ", ".join(f"{each['definition']} by {each['model']}" for each in choice["ranked_by"])
    return f"{choice['rank']} of {choice['n']} candidates: {choice['reward']:.3f} ({by})"


def _score(score: Mapping[str, Any]) -> str:
    definition = score.get("definition", "torchmetrics")
    definition = "" if definition == "torchmetrics" else f" {definition}"
    roles = ", ".join(role for name, role in (("guided", "the guide"), ("chose", "chose it")) if score.get(name))
    return f"{score['score']:.3f}{definition} by {score['model']}{f' ({roles})' if roles else ''}"
