"""What a notebook shows of a result: each module of reports registers the classes that it draws."""

from __future__ import annotations

import functools
from typing import Any

from markupsafe import Markup

from clip_guidance.report.html.page import fragment


@functools.singledispatch
def result_parts(result: Any) -> tuple[Markup, ...]:
    """Return the parts of a report that show one result.

    Args:
        result: An instance of a class that a module of reports has registered with ``result_parts.register``.

    Raises:
        TypeError: No report is registered for this class.
    """
    raise TypeError(f"no report shows a {type(result).__name__}")


def notebook_html(result: Any) -> str:
    """Return the HTML that a notebook shows of a result, with its style.

    Raises:
        TypeError: No report is registered for the class of the result.
    """
    return fragment(*result_parts(result))
