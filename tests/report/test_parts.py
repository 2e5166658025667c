"""The parts of a report: galleries, heat maps, histograms, lists; bounded, rounded as they say, escaped."""

import math

import numpy as np
import pytest
import torch
from helpers import html_pages

from clip_guidance import report
from clip_guidance.index.results import Hit, Hits
from clip_guidance.report.html import parts


def cells(page, form=float):
    (table,) = page.all("table")
    return [[form(cell.text) for cell in row.all("td")] for row in table.all("tr")[1:]]


@pytest.fixture
def matrix(photos):
    vectors = torch.randn(len(photos), 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(vectors) @ torch.nn.functional.normalize(vectors).T


def test_a_heat_map_shows_each_cosine_the_bluer_the_higher(photos, matrix):
    html = report.similarity(matrix, photos).to_html()
    page = html_pages.read(html)
    html_pages.assert_harmless(page)
    assert cells(page) == [[round(value, 3) for value in row] for row in matrix.tolist()]
    shades = [float(cell.attributes["style"].removeprefix("--v:")) for cell in page.all("td", "shade")]
    low, high = matrix.min(), matrix.max()
    assert shades == pytest.approx(((matrix - low) / (high - low)).flatten().tolist(), abs=0.00501)
    for scope in ("row", "col"):
        heads = [head for head in page.all("th") if head.attributes.get("scope") == scope]
        assert [head.all("img")[0].attributes["title"] for head in heads] == list(map(str, photos))
        assert [head.text[0] for head in heads] == list("12345")


def test_a_heat_map_of_two_lists_and_of_many(photos, matrix, monkeypatch):
    page = html_pages.read(report.similarity(matrix[:2], photos[:2], photos).to_html())
    assert "2 images in rows, 5 images in columns." in page.text and len(cells(page)[0]) == 5
    monkeypatch.setattr(parts, "MAX_SIDE", 3)
    page = html_pages.read(report.similarity(matrix, photos).to_html())
    assert "The first 3 of 5 images." in page.text and len(cells(page)) == len(cells(page)[0]) == 3
    with pytest.raises(ValueError, match=r"expected a matrix \(5, 5\) for these images, got \(2, 5\)"):
        report.similarity(matrix[:2], photos)


def test_what_is_not_finite_has_no_shade():
    assert parts.unit([math.nan, -1, 3, math.inf]) == [0, 0, 1, 0]
    assert parts.unit([2, 2]) == [0, 0] and parts.unit([]) == []


def test_a_ranking_shows_every_image_once_in_order(photos):
    page = html_pages.read(report.ranking(photos, [0.91234, 0.5, 0, -0.1, -0.99999], to=photos[2]).to_html())
    html_pages.assert_harmless(page)
    query, *found = page.all("li", "card")
    assert query.all("img")[0].attributes["title"] == str(photos[2])
    assert [card.all("img")[0].attributes["title"] for card in found] == list(map(str, photos))
    assert [card.all("p", "value")[0].text for card in found] == ["0.912", "0.500", "0.000", "-0.100", "-1.000"]


def test_hits_are_shown_with_their_metadata_on_the_page_and_in_a_notebook(photos, monkeypatch):
    hits = Hits(Hit(str(path), 0.5, {"<i>album</i>": "<script>", "year": 2020}) for path in photos)
    page = report.search("2 * <b> - x", hits, facts={"where": None})
    html_pages.assert_harmless(html_pages.read(page.to_html()))
    assert page.parts[1] in hits._repr_html_() and page.parts[1] in page.to_html()
    card = html_pages.read(hits._repr_html_()).all("li", "card")[3]
    assert card.all("img")[0].attributes["title"] == str(photos[3])
    assert [line.text for line in card.all("p", "line")] == ["<i>album</i>: <script>", "year: 2020"]
    assert page.title == "Search: 2 * <b> - x" and "where" not in html_pages.read(page.parts[0]).text
    monkeypatch.setattr(parts, "MAX_IMAGES", 4)
    assert "The first 4 of 5 images, best first" in html_pages.read(hits._repr_html_()).text


def test_duplicates_are_shown_group_by_group_as_long_as_there_is_room(photos, monkeypatch):
    groups = [photos[:2], photos[2:]]
    page = html_pages.read(report.duplicates(groups).to_html())
    assert [len(section.all("img")) for section in page.all("section")] == [2, 3]
    monkeypatch.setattr(parts, "MAX_IMAGES", 3)
    page = html_pages.read(report.duplicates(groups).to_html())
    assert [len(section.all("img")) for section in page.all("section")] == [2, 1]
    assert "the first 3 of 5 images" in page.text and "The first 1 of 3 images" in page.text


@pytest.mark.parametrize("count", [1, 2, 50, 3000])
def test_a_histogram_counts_every_finite_value(count):
    values = np.random.default_rng(count).normal(25, 3, count)
    page = html_pages.read(parts.histogram([*values, math.nan], "<score>"))
    bars = page.all("rect")
    counts = [int(bar.text.split(":")[0]) for bar in bars]
    assert sum(counts) == count and len(bars) == math.ceil(math.log2(count)) + 1
    heights = [float(bar.attributes["height"]) for bar in bars]
    assert heights == pytest.approx([parts.HEIGHT * number / max(counts) for number in counts], abs=0.0501)
    tops = [float(bar.attributes["y"]) + height for bar, height in zip(bars, heights, strict=True)]
    assert tops == pytest.approx([120] * len(bars))
    assert f"<score>: mean {values.mean():.3f} of {count}" in page.text
    low, high = (float(page.all("span")[at].text) for at in (0, 2))
    mean, width = float(page.all("line")[0].attributes["x1"]), 20 * len(bars)
    assert low + mean / width * (high - low) == pytest.approx(values.mean(), abs=0.02 * (high - low) / len(bars) + 0.01)


def test_no_finite_value_makes_no_histogram():
    assert parts.histogram([math.nan], "score") == "" == parts.histogram([], "score")


def test_failures_are_bounded_and_named(monkeypatch):
    assert parts.failures([]) == ()
    failed = [{"path": f"{number}.png", "reason": "<empty>"} for number in range(5)]
    monkeypatch.setattr(parts, "MAX_LINES", 2)
    (part,) = parts.failures(failed)
    assert cells(html_pages.read(part), str) == [["0.png", "<empty>"], ["1.png", "<empty>"]]
    assert "The first 2 of 5 inputs" in html_pages.read(part).text


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["/x/y/a.png", "/x/y/b.png"], ["a.png", "b.png"]),
        (["/x/cat/a.png", "/x/dog/a.png"], ["cat/a.png", "dog/a.png"]),
        (["cat/a.png", "/x/a.png"], ["cat/a.png", "/x/a.png"]),
        (["/x/a.png"], ["a.png"]),
        (["image 0", "image 1"], ["image 0", "image 1"]),
        (["x", "x/a.png"], ["x", "x/a.png"]),
        ([], []),
    ],
)
def test_names_are_short_and_tell_images_apart(names, short):
    assert parts.short_names(names) == short
