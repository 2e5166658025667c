"""A page: one HTML file that needs nothing else, written in full or not at all."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from clip_guidance import __version__
from clip_guidance._files import write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment

MARK = Markup('<meta name="generator" content="clip_guidance report">')  # marks a file as a report
SUFFIXES = (".html", ".htm")


@dataclass(frozen=True)
class Page:
    """Hold the report of a result: shown by a notebook as it stands, or saved as a file.

    Attributes:
        title: Plain text.
        parts: HTML, as the functions of :mod:`clip_guidance.report.html.parts` make it.

    Example:
        >>> from clip_guidance.report import Page
        >>> Page("Nothing", ()).to_html()[:15]
        '<!doctype html>'
    """

    title: str
    parts: tuple[Markup, ...]

    def to_html(self) -> str:
        """Return the whole page: no scripts, and no address of anything outside it."""
        template = environment().get_template("page.html")
        return template.render(title=self.title, body=Markup("\n").join(self.parts), mark=MARK, version=__version__)

    def _repr_html_(self) -> str:
        return fragment(*self.parts)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page, in full or not at all.

        Args:
            path: Path that ends in .html or .htm. A former report is replaced.

        Returns:
            The path.

        Raises:
            ValueError: The path has another ending, or is a file that is no report.
            OSError: The page cannot be written.
        """
        path = Path(path)
        check_target(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path, f".{os.getpid()}.part") as partial:
            # Names of files may hold bytes that are no text; the surrogates that Python reads them as are no UTF-8.
            partial.write_text(self.to_html(), encoding="utf-8", errors="backslashreplace")
        return path


def check_target(path: Path) -> None:
    """Check, before the work, that a report may be written to a path.

    Folders that are not there yet will be made.

    Raises:
        ValueError: The ending is not .html or .htm, no folder can be made there, or a file that is no report is there.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a report must end in .html or .htm, got {path.name}")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ValueError(f"{path}: {above} is no folder that can be written to")
    if (path.exists() or path.is_symlink()) and not _is_report(path):
        raise ValueError(f"{path} exists and is no report of clip_guidance; it is not overwritten")


def fragment(*parts: Markup) -> str:
    """Return parts of a report as they stand in a notebook: with their style, and nothing else."""
    style = environment().get_template("style.css").render()
    return Markup('<div class="cg"><style>{}</style>{}</div>').format(Markup(style), Markup("\n").join(parts))


@functools.cache
def environment() -> Environment:
    """Return Jinja's environment, with escaping always on."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("clip_guidance.report.html"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters["percent"] = percent
    made.filters["width"] = _width
    return made


def render(macro: str, *args: Any, **kwargs: Any) -> Markup:
    """Render a part, by the name of its macro in ``parts.html``."""
    return Markup(getattr(environment().get_template("parts.html").module, macro)(*args, **kwargs))


def percent(share: float) -> str:
    """Format a share in [0, 1], rounded to a tenth of a percent."""
    return f"{share:.1%}"


def _width(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.1f}%" if math.isfinite(share) else "0%"


def _is_report(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(512)
