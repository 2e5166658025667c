"""The report of what is in a set of images and captions: ``clip-guidance data check``."""

from __future__ import annotations

from markupsafe import Markup

from clip_guidance.data.check import Report
from clip_guidance.report.html import parts
from clip_guidance.report.html.page import Page
from clip_guidance.report.notebook import result_parts


def data_check(report: Report) -> Page:
    """Make a page of what was read: how much of it is good, and the first bad rows of each kind.

    Args:
        report: What ``clip_guidance.data.check`` returned.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from clip_guidance import data, report
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (8, 8), "red").save(Path(folder, "1.png"))
        ...     _ = Path(folder, "1.txt").write_text("a red apple")
        ...     page = report.data_check(data.check(data.open_pairs(folder)))
        >>> "good (1)" in page.to_html()
        True
    """
    return Page("What training would read", data_parts(report))


@result_parts.register
def data_parts(report: Report) -> tuple[Markup, ...]:
    """Draw the figures, the share of each kind of row, and examples of bad rows."""
    sizes = [f"{size[0]} × {size[1]}" for size in (report.smallest, report.largest) if size]
    figures = {
        "source": f"{report.source} ({report.kind})",
        "verdict": report.verdict,
        "rows": f"{report.rows:,}{'' if report.complete else ', only these read'}",
        "captions": f"{report.captions:,}, of which {report.duplicate_captions:,} are also an earlier image's",
        "pixels": " to ".join(sizes) or None,
        "quarantine": report.quarantine,
    }
    counts = {"good": report.good, **{f"bad: {reason}": count for reason, count in report.bad.items()}, **report.notes}
    shares = [(f"{name} ({count:,})", count / max(1, report.rows)) for name, count in counts.items()]
    bad = [(row["reason"], row["key"], row["detail"]) for rows in report.examples.values() for row in rows]
    listed = parts.section("Bad rows", parts.table(["reason", "row", "detail"], bad), "The first three of each reason.")
    return (
        parts.facts(figures),
        parts.section("Rows", parts.bars(shares), "Shares of all rows, rounded to 0.1 %."),
        *([listed] if bad else []),
    )
