"""Results that show themselves: drawn by :mod:`clip_guidance.report`, which stands above every result.

A result inherits :class:`DisplayMixin` and names no report; ``report`` registers how each class is drawn. The imports
are inside the methods because reports import the results that they draw.
"""

from __future__ import annotations

from typing import Any


class DisplayMixin:
    """Show a result in a notebook as its report draws it."""

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows, with its style."""
        from clip_guidance.report.notebook import notebook_html

        return notebook_html(self)

    def _plot(self, *args: Any, **kwargs: Any) -> Any:
        """Draw the result with matplotlib, for the method ``plot`` of the classes that have one."""
        from clip_guidance.report.plots import plot_result

        return plot_result(self, *args, **kwargs)
