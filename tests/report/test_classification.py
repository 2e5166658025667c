"""Pages of zero-shot classification: each image once, bars as wide as probabilities, nothing that runs."""

import pytest
import torch
from helpers import html_pages
from PIL import Image

from clip_guidance import report
from clip_guidance.metrics.classification import classification_metrics
from clip_guidance.report.html import parts
from clip_guidance.zero_shot.classifier import ZeroShotResult


def cards(page):
    return html_pages.read(page.to_html()).all("li", "card")


def test_every_image_is_shown_once_beside_its_own_bars(photos, result):
    page = report.classification(result, photos)
    for card, path, top in zip(cards(page), photos, result.top(5), strict=True):
        (image,) = card.all("img")
        assert image.attributes["title"] == str(path)
        with Image.open(path) as original, html_pages.image(image) as embedded:
            assert embedded.convert("RGB").tobytes() == original.tobytes()  # small ones are exact
        assert card.all("p", "name")[0].text == path.name
        bars = card.all("div", "bar")
        assert [bar.all("span")[0].text for bar in bars] == [entry.label for entry in top]
        assert [bar.all("span", "number")[0].text for bar in bars] == [f"{entry.prob:.1%}" for entry in top]
    assert [image.attributes["title"] for image in html_pages.read(page.to_html()).all("img")] == list(map(str, photos))


def test_bars_are_as_wide_as_probabilities(photos, result):
    bars = [bar for card in cards(report.classification(result, photos)) for bar in card.all("i")]
    widths = [float(bar.attributes["style"].removeprefix("width:").removesuffix("%")) for bar in bars]
    probs = [entry.prob for top in result.top(5) for entry in top]
    assert widths == pytest.approx([100 * prob for prob in probs], abs=0.0501)


def test_probabilities_that_are_no_numbers_do_not_break_the_page(photos):
    probs = torch.full((1, 2), torch.nan)
    (card,) = cards(report.classification(ZeroShotResult(("a", "b"), probs, probs), photos[:1]))
    assert [bar.attributes["style"] for bar in card.all("i")] == ["width:0%"] * 2
    assert card.all("span", "number")[0].text == "nan%"


def test_names_and_labels_are_text(photos, result):
    failed = [{"path": "<script>x</script>.png", "reason": '"><img src=x onerror=y>'}]
    truth = [label for label in result.labels]
    html = report.classification(
        result, photos, truth=truth, facts={"<b>": "</style><script>"}, failed=failed
    ).to_html()
    page = html_pages.read(html)
    html_pages.assert_harmless(page)
    assert not page.all("b") and "default-src 'none'" in html
    for text in (*result.labels, failed[0]["path"], failed[0]["reason"], "</style><script>"):
        assert text in page.text


def test_where_the_truth_is_known_mistakes_come_first_the_surest_before_others(photos):
    probs = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.55, 0.45]])
    result = ZeroShotResult(("x", "y"), probs.log(), probs)
    page = report.classification(result, photos, truth=["x", "y", "x", None, "y"])
    shown = [(card.all("img")[0].attributes["title"], card.all("p", "value")[0].text) for card in cards(page)]
    assert shown == [
        (str(photos[2]), "✗ y; right: x"),
        (str(photos[1]), "✗ x; right: y"),
        (str(photos[4]), "✗ x; right: y"),
        (str(photos[0]), "✓ x"),
        (str(photos[3]), "y"),
    ]
    (table,) = html_pages.read(page.to_html()).all("table")
    metrics = classification_metrics(result.logits[[0, 1, 2, 4]], torch.tensor([0, 1, 0, 1]))
    cells = [[int(cell.text) for cell in row.all("td")] for row in table.all("tr")[1:]]
    assert cells == metrics.confusion.tolist()
    assert f"top 1 {metrics.top1:.1%}" in html_pages.read(page.to_html()).text


def test_of_many_labels_the_commonest_mistakes_are_listed():
    count = 31
    logits = torch.eye(count)[[1, 1, 1, 2, 0]]
    labels = tuple(f"label {number}" for number in range(count))
    truth = ["label 0", "label 0", "label 1", "label 0", "label 0"]
    page = report.classification(ZeroShotResult(labels, logits, logits.softmax(-1)), truth=truth)
    (table,) = html_pages.read(page.to_html()).all("table")
    rows = [[cell.text for cell in row.all("td")] for row in table.all("tr")[1:]]
    assert rows == [["label 0", "label 1", "2"], ["label 0", "label 2", "1"]]


def test_below_the_threshold_no_label_is_given(photos, result):
    page = report.classification(result, photos, threshold=1.0)
    assert {card.all("p", "value")[0].text for card in cards(page)} == {"none reaches 100.0%"}


def test_several_labels_may_be_given(photos):
    probs = torch.tensor([[0.9, 0.6, 0.2]])
    result = ZeroShotResult(("x", "y", "z"), probs.logit(), probs, multi_label=True)
    (card,) = cards(report.classification(result, photos[:1], truth=["y"], threshold=0.5))
    assert card.all("p", "value")[0].text == "✓ x, y"


def test_a_page_says_how_many_of_many_it_shows(photos, result, monkeypatch):
    monkeypatch.setattr(parts, "MAX_IMAGES", 2)
    page = report.classification(result, photos)
    assert [card.all("img")[0].attributes["title"] for card in cards(page)] == [str(path) for path in photos[:2]]
    assert "The first 2 of 5 images. Probabilities are rounded to 0.1 %." in html_pages.read(page.to_html()).text


def test_an_image_that_is_gone_is_told_not_fatal(photos, result):
    photos[1].unlink()
    card = cards(report.classification(result, photos))[1]
    assert not card.all("img") and card.all("div", "missing")[0].text == "no image: no such file"


def test_what_does_not_fit_is_named(photos, result):
    with pytest.raises(ValueError, match="expected 5 images, one for each of the result's, got 4"):
        report.classification(result, photos[:4])
    with pytest.raises(ValueError, match="expected 5 right labels, one for each of the result's, got 1"):
        report.classification(result, photos, truth=["cat"])
    with pytest.raises(ValueError, match=r"unknown labels \['bus'\]; the result knows cat, "):
        report.classification(result, photos, truth=["bus", None, None, None, None])


def test_a_notebook_shows_the_parts_of_the_page(photos, result):
    shown = html_pages.read(result._repr_html_())
    html_pages.assert_harmless(shown)
    of_page = [card.all("div", "bar") for card in cards(report.classification(result, photos))]
    assert [card.all("div", "bar") for card in shown.all("li", "card")] == of_page
    page = report.classification(result, photos)
    assert all(part in page._repr_html_() and part in page.to_html() for part in page.parts)
    metrics = classification_metrics(result.logits, torch.arange(5))
    measured = report.classification(result, truth=list(result.labels)).parts[1:3]
    assert measured[0] in metrics._repr_html_()
    cells = [cell.text for cell in html_pages.read(metrics._repr_html_()).all("td")]
    assert cells == [cell.text for cell in html_pages.read(measured[1]).all("td")]


def test_batches_are_one_result(result):
    halves = [ZeroShotResult(result.labels, result.logits[at], result.probs[at]) for at in (slice(2), slice(2, None))]
    whole = ZeroShotResult.cat(halves)
    assert whole.labels == result.labels and torch.equal(whole.probs, result.probs)
    assert torch.equal(whole.logits, result.logits)
    other = ZeroShotResult(("x",), torch.zeros(1, 1), torch.ones(1, 1))
    with pytest.raises(ValueError, match="expected results of one classifier, got those of 2"):
        ZeroShotResult.cat([result, other])
