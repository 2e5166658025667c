"""Plots hold the numbers that they are made of."""

import sys

import matplotlib
import numpy as np
import pytest
import torch

from clip_guidance.report import plots
from clip_guidance.zero_shot.classifier import ZeroShotResult

matplotlib.use("Agg")
from matplotlib import pyplot


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def test_bars_are_the_probabilities(photos):
    logits = torch.randn(len(photos), 3, generator=torch.Generator().manual_seed(0))
    result = ZeroShotResult(("cat", "dog", "apple $x_$"), logits, logits.softmax(-1))
    figure = result.plot(photos, k=2)
    figure.canvas.draw()  # labels with dollars included
    images, bars = figure.axes[::2], figure.axes[1::2]
    for axes, top in zip(bars, result.top(2), strict=True):
        assert [bar.get_width() for bar in axes.patches] == pytest.approx([entry.prob for entry in top])
        assert [tick.get_text() for tick in axes.get_yticklabels()] == [entry.label for entry in top]
        assert axes.yaxis_inverted()  # the likeliest on top
    assert [axes.images[0].get_array().shape[:2] for axes in images] == [(30, 40 + i) for i in range(len(photos))]
    assert len(result.plot().axes) == len(photos)


def test_a_matrix_is_drawn_with_its_numbers():
    for values in (torch.eye(3, dtype=torch.bfloat16), np.eye(3), torch.eye(3).tolist()):
        axes = plots.plot_matrix(values, ["a", "b", "c"])
        assert np.array_equal(axes.images[0].get_array(), np.eye(3))
        assert [text.get_text() for text in axes.texts] == [f"{value:.2f}" for value in np.eye(3).ravel()]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b", "c"]
    axes = plots.plot_matrix(torch.tensor([[1, 2]]), form="d")
    assert [text.get_text() for text in axes.texts] == ["1", "2"]


def test_what_cannot_be_drawn_is_named(photos):
    empty = ZeroShotResult(("x",), torch.zeros(0, 1), torch.zeros(0, 1))
    one = ZeroShotResult(("x",), torch.zeros(1, 1), torch.ones(1, 1))
    for draw, message in (
        (lambda: plots.plot_probs(empty), "expected a result of at least one image to plot, got none"),
        (lambda: plots.plot_probs(one, photos), "expected 1 images, one for each of the result's, got 5"),
        (lambda: plots.plot_matrix([1, 2]), r"values: expected a matrix \(n, m\), got the shape \(2,\)"),
        (lambda: plots.plot_matrix([[1, 2]], ["a", "b"]), "rows: expected 1 names, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            draw()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'plots need matplotlib: pip install "clip-guidance\[plot\]"'):
        plots.plot_matrix([[1.0]])
