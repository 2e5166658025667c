"""Pages of scores and of runs compared: every number counted, the extremes shown, in one pass."""

import importlib
import math

import numpy as np
from helpers import html_pages

from clip_guidance import report
from clip_guidance.metrics.comparison import compare_scores

scored = importlib.import_module("clip_guidance.report.scores")  # the package exports a function of this name


def shown(section):
    return [
        (card.all("img")[0].attributes["title"], card.all("p", "value")[0].text) for card in section.all("li", "card")
    ]


def test_few_images_are_all_shown_once_best_first(photos):
    values = [1.005, -2.5, 31.239, math.nan, 7]
    rows = zip(photos, ["<b>"] * 5, values, strict=True)
    page = html_pages.read(report.scores(report.Scores(rows, "<i>", {"prefix": "", "weight": 2.5})).to_html())
    html_pages.assert_harmless(page)
    head, spread, images = page.all("section")
    expected = [(photos[2], "31.239"), (photos[4], "7.000"), (photos[0], "1.005"), (photos[1], "-2.500")]
    assert shown(images) == [(str(path), value) for path, value in expected]
    assert head.text == "<i> weight 2.5 images 4 scores that are not finite 1"
    assert sum(int(bar.text.split(":")[0]) for bar in spread.all("rect")) == 4
    assert {line.text for line in images.all("p", "line")} == {"<b>"}


def test_of_many_the_best_and_the_worst_are_shown(photos, monkeypatch):
    monkeypatch.setattr(scored, "EXTREMES", 2)
    values = np.random.default_rng(0).permutation(1000).tolist()
    best, worst = sorted(values)[::-1][:2], sorted(values)[:2]
    page = html_pages.read(report.scores(report.Scores((photos[0], "", float(value)) for value in values)).to_html())
    sections = {section.all("h2")[0].text: section for section in page.all("section")}
    assert [value for _, value in shown(sections["Best"])] == [f"{value:.3f}" for value in best]
    assert [value for _, value in shown(sections["Worst"])] == [f"{value:.3f}" for value in worst]
    assert "The worst 2 of 1,000 images, the worst first." in sections["Worst"].text


def test_equal_scores_keep_their_order(photos):
    page = html_pages.read(report.scores(report.Scores([(path, "", 1.0) for path in photos])).to_html())
    assert [name for name, _ in shown(page.all("section")[-1])] == list(map(str, photos))


def test_several_definitions_stand_below_one_another(photos):
    both = [report.Scores([(photos[0], "", 1.0)], title) for title in ("one", "two")]
    page = html_pages.read(report.scores(*both, failed=[{"path": "x", "reason": "y"}]).to_html())
    titles = [title.text for title in page.all("h2")]
    assert titles == ["one", "Spread", "Images", "two", "Spread", "Images", "Not read"]


def test_nothing_scored_is_a_page_too():
    assert "0 images" in html_pages.read(report.scores(report.Scores([])).to_html()).text


def test_a_comparison_shows_every_pair_and_its_figures():
    a = {"<script>": 1.0, ("b.png", "x"): 2.0, "c": 5.0, "gone": 1.0}
    b = {"<script>": 4.25, ("b.png", "x"): 1.0, "c": 5.0}
    found = compare_scores(a, b, resamples=50)
    page = report.comparison(found)
    tree = html_pages.read(page.to_html())
    html_pages.assert_harmless(tree)
    (table,) = tree.all("table")
    assert [[cell.text for cell in row.all("td")] for row in table.all("tr")[1:]] == [
        ["<script>", "1.000", "4.250", "+3.250"],
        ["c", "5.000", "5.000", "+0.000"],
        ["b.png | x", "2.000", "1.000", "-1.000"],
    ]
    figures = dict(zip(*([part.text for part in tree.all(tag)] for tag in ("dt", "dd")), strict=True))
    assert figures["difference b − a"].startswith("+0.7500 (") and figures["b is higher"].startswith("50.0% (")
    assert figures["only in a"] == "1" and "only in b" not in figures
    assert all(part in found._repr_html_() for part in page.parts)


def test_of_many_pairs_those_that_differ_most_are_shown(monkeypatch):
    monkeypatch.setattr(scored, "EXTREMES", 1)
    found = compare_scores({str(i): 0.0 for i in range(9)}, {str(i): float(i) for i in range(9)}, resamples=10)
    tree = html_pages.read(report.comparison(found).to_html())
    assert [row.all("td")[0].text for row in tree.all("tr")[1:]] == ["8", "0"]
    assert "2 of 9 pairs" in tree.text


def test_scores_that_differ_by_rounding_alone_have_a_page():
    values = [0.3, math.nextafter(0.3, 1), 0.3]
    page = html_pages.read(report.scores(report.Scores([("a.png", "a", value) for value in values])).to_html())
    assert [bar.text for bar in page.all("title")[1:]] == ["3: 0.300 to 0.300"]
    found = compare_scores({(i, "a"): 0.0 for i in range(3)}, {(i, "a"): value for i, value in enumerate(values)})
    assert "1 | a" in html_pages.read(report.comparison(found).to_html()).text
