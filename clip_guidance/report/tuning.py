"""The report of what suits a pipeline and a CLIP: ``clip-guidance tune``."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from clip_guidance.generation.tuning import TriedSetting, TuneResult
from clip_guidance.report.html import parts
from clip_guidance.report.html.page import Page
from clip_guidance.report.notebook import result_parts

COLUMNS = ("mode", "scale", "damping", "window", "named", "kernel distance", "seconds", "")


def tuning(result: TuneResult) -> Page:
    """Make a page of the settings that were tried, and the one that was chosen.

    Args:
        result: What ``cg.tune`` returned.
    """
    return Page("What suits the pipeline and the CLIP", tuning_parts(result))


@result_parts.register
def tuning_parts(result: TuneResult) -> tuple[Markup, ...]:
    """Draw the choice, and a table of what was tried."""
    pair, measured = result.pair, result.pair.measured
    figures = {
        "pipeline": f"{pair.pipeline.name} ({pair.pipeline.fingerprint})",
        "CLIP": f"{pair.clip.name} ({pair.clip.fingerprint})",
        "judge": f"{measured['judge']['name']} ({measured['judge']['fingerprint']})",
        "chosen": ", ".join(f"{name} {value}" for name, value in pair.options.items()),
        "images per setting": len(measured["prompts"]),
        "real images": measured["images"] or "none: only names were compared",
        "settings": f"{len(result.tried)}, {result.untried} left out by the budget",
    }
    note = (
        "Named: share of the images that the judge gives the right name of all prompts. Chosen is the setting most "
        "often named right among those no farther from the real images than the first one, which is not guided."
    )
    rows = [(*cells(each), "chosen" if each is result.best else each.failed) for each in result.tried]
    return parts.facts(figures), parts.section("Settings", parts.table(COLUMNS, rows), note)


def cells(tried: TriedSetting) -> tuple[Any, ...]:
    """Return a setting and what was found of it, as a row of a table."""
    setting = tried.setting
    scale = "calibrated" if setting.scale is None else f"{setting.scale:g}"
    window = f"{setting.start:g} to {setting.stop:g}"
    distance = "" if tried.kernel_distance is None else f"{tried.kernel_distance:.4f}"
    found = [f"{each:.3f}" if math.isfinite(each) else "" for each in (tried.named, tried.seconds)]
    return setting.mode, scale, f"{setting.damping:g}", window, found[0], distance, found[1]
