"""Plots of results for notebooks and papers, drawn with matplotlib (extra ``plot``).

Each function returns what it drew on, so that titles, sizes and files are matplotlib's own:
``plot_matrix(matrix).figure.savefig("similarity.pdf")``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from clip_guidance.images.load import as_list, load_image
from clip_guidance.zero_shot.classifier import ZeroShotResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLAIN: dict[str, Any] = {"parse_math": False}  # a dollar in a label starts no formula


@functools.singledispatch
def plot_result(result: Any, *args: Any, **kwargs: Any) -> Any:
    """Draw a result; the function registered for its class says with which arguments.

    Raises:
        TypeError: No plot is registered for this class.
    """
    raise TypeError(f"no plot shows a {type(result).__name__}")


@plot_result.register(ZeroShotResult)
def plot_probs(result: ZeroShotResult, images: Any = None, k: int = 5) -> Figure:
    """Draw the k likeliest labels of each image as bars, beside the image.

    Args:
        result: The result of n images.
        images: The n images, as for ``CLIP.encode_image``; without them only the bars are drawn.
        k: Labels for each image.

    Raises:
        ImportError: Matplotlib is not installed.
        ImageError: An image cannot be read.
        ValueError: There is no image, or not as many images as results.
    """
    if not len(result):
        raise ValueError("expected a result of at least one image to plot, got none")
    sources = None if images is None else as_list(images)
    if sources is not None and len(sources) != len(result):
        raise ValueError(f"expected {len(result)} images, one for each of the result's, got {len(sources)}")
    size = (7.0, 0.6 + len(result) * max(1.2, 0.3 * min(k, len(result.labels))))
    columns = 1 if sources is None else 2
    figure, grid = _pyplot().subplots(len(result), columns, figsize=size, squeeze=False, layout="constrained")
    for row, (axes, top) in enumerate(zip(grid, result.top(k), strict=True)):
        if sources is not None:
            _image(axes[0], sources[row])
        axes[-1].barh(range(len(top)), [entry.prob for entry in top])
        axes[-1].set_yticks(range(len(top)), [entry.label for entry in top], **PLAIN)
        axes[-1].invert_yaxis()  # the likeliest on top
        axes[-1].set_xlim(0, 1)
    grid[-1][-1].set_xlabel("probability")
    return figure


def plot_matrix(
    values: Any,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    ax: Axes | None = None,
    form: str = ".2f",
) -> Axes:
    """Draw a heat map of numbers: cosines of images, or a confusion matrix (``form="d"``).

    Args:
        values: Numbers (n, m): a tensor, an array or lists.
        rows: Names, n of them; numbers by default.
        columns: Names, m of them; by default those of the rows where n = m.
        ax: Axes to draw on; those of a new figure by default.
        form: Format of the numbers in the cells, as for ``format``.

    Raises:
        ImportError: Matplotlib is not installed.
        ValueError: The values are no matrix, or the names do not fit.
    """
    matrix = _array(values)
    if matrix.ndim != 2:
        raise ValueError(f"values: expected a matrix (n, m), got the shape {matrix.shape}")
    rows = rows if rows is not None else [str(number) for number in range(matrix.shape[0])]
    if columns is None:
        columns = rows if len(rows) == matrix.shape[1] else [str(number) for number in range(matrix.shape[1])]
    for what, names, count in (("rows", rows, matrix.shape[0]), ("columns", columns, matrix.shape[1])):
        if len(names) != count:
            raise ValueError(f"{what}: expected {count} names, got {len(names)}")
    ax = ax if ax is not None else _pyplot().subplots(layout="constrained")[1]
    shown = ax.imshow(matrix, cmap="Blues")
    middle = (matrix.max() + matrix.min()) / 2
    for (i, j), value in np.ndenumerate(matrix):
        colour = "white" if value > middle else "black"
        ax.text(j, i, format(value, form), ha="center", va="center", color=colour, fontsize="small")
    ax.set_yticks(range(matrix.shape[0]), rows, **PLAIN)
    ax.set_xticks(range(matrix.shape[1]), columns, rotation=90, **PLAIN)
    ax.figure.colorbar(shown, ax=ax)
    return ax


def _image(ax: Axes, source: Any) -> None:
    ax.imshow(load_image(source))
    ax.set_axis_off()


def _array(values: Any) -> np.ndarray:
    """Convert a tensor on any device, an array or lists to an array."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()  # numpy knows no bfloat16
    return np.asarray(values)


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "clip-guidance[plot]"') from error
    return pyplot
