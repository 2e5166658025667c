"""Pages of what was drawn and of what training would read."""

from dataclasses import asdict, replace

import pytest
from helpers import html_pages
from PIL import Image

from clip_guidance import data as reading
from clip_guidance import report
from clip_guidance.generation.best_of import FailedCandidate, SearchResult
from clip_guidance.generation.candidates import Choice
from clip_guidance.generation.image import GeneratedImage
from clip_guidance.generation.settings import GenerateSettings

SCORE = {"score": 27.123, "model": "<judge>", "guided": False}


@pytest.fixture
def drawn():
    prompts = ["a red apple", "<script>alert(1)</script>", "a red apple"]
    return [
        GeneratedImage(
            Image.new("RGB", (16, 16), (number, 0, 0)),
            GenerateSettings(prompt, seed=number, steps=10 + (number == 2)),
            scores=[SCORE],
        )
        for number, prompt in enumerate(prompts)
    ]


def test_drawn_images_have_their_own_settings_and_those_of_all(drawn):
    page = report.generated([{"image": each.image, **each.record()} for each in drawn])
    tree = html_pages.read(page.to_html())
    html_pages.assert_harmless(tree)
    for number, (card, each) in enumerate(zip(tree.all("li", "card"), drawn, strict=True)):
        embedded = html_pages.image(card.all("img")[0])
        assert embedded.convert("RGB").getpixel((0, 0)) == (number, 0, 0)
        lines = [line.text for line in card.all("p", "line")]
        steps = each.settings.steps
        assert lines == [each.settings.prompt, f"seed {number}", f"steps {steps}", "27.123 by <judge>"]
    (shared,) = tree.all("dl")
    settings = asdict(drawn[0].settings)
    names = [name.text for name in shared.all("dt")]
    assert {"guidance_scale", "every", "device", "torch"} <= set(names) and not {"prompt", "seed", "steps"} & set(names)
    values = dict(zip(names, [value.text for value in shared.all("dd")], strict=True))
    assert values["every"] == str(settings["every"]) and float(values["guidance_scale"]) == settings["guidance_scale"]


def test_a_notebook_shows_a_drawn_image(drawn):
    page = report.generated([{"image": drawn[1].image, **drawn[1].record()}])
    assert drawn[1]._repr_html_() == page._repr_html_()
    assert len(html_pages.read(drawn[1]._repr_html_()).all("img")) == 1


def test_a_reward_is_shown_by_its_name(drawn):
    drawn[0].scores.append({**SCORE, "definition": "pickscore", "guided": True})
    drawn[0].scores = [*drawn[0].scores, {**SCORE, "definition": "torchmetrics"}]
    shown = html_pages.read(drawn[0]._repr_html_()).text
    assert "27.123 pickscore by <judge> (the guide)" in shown and shown.count("27.123 by <judge>") == 2


def test_a_chosen_image_tells_among_how_many(drawn):
    by = {"definition": "logit", "model": "<judge>", "fingerprint": "0", "weight": 1.0}
    chosen = replace(drawn[0], choice=Choice(4, 0, 2, 2.5, [by]), scores=[{**SCORE, "chose": True}])
    shown = html_pages.read(chosen._repr_html_()).text
    assert "2 of 4 candidates: 2.500 (logit by <judge>)" in shown and "27.123 by <judge> (chose it)" in shown


def test_a_notebook_shows_what_a_search_found():
    images = [Image.new("RGB", (16, 16), (number, 0, 0)) for number in range(2)]
    failed = [FailedCandidate(7, "is not <finite>")]
    tree = html_pages.read(SearchResult(images, [2.5, -1.0], [3, 0], 3, 0.1, failed)._repr_html_())
    cards = tree.all("li", "card")
    assert [html_pages.image(card.all("img")[0]).getpixel((0, 0))[0] for card in cards] == [0, 1]
    assert "2.500" in cards[0].text and "seed 3" in cards[0].text and "-1.000" in cards[1].text
    assert "2 images, best first" in tree.text and "seed 7 is not <finite>" in tree.text


def test_nothing_drawn_is_a_page_too():
    page = html_pages.read(report.generated([], failed=[{"path": "--prompt ''", "reason": "is empty"}]).to_html())
    assert "0 images" in page.text and "--prompt '' is empty" in page.text


def test_data_is_shown_as_it_is_counted(tmp_path):
    folder = tmp_path / "<photos>"
    (folder / "cat").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (4 + number, 4), (number, 0, 0)).save(folder / "cat" / f"{number}.png")
    (folder / "cat" / "<b>.png").write_bytes(b"")
    pairs = reading.open_pairs(str(folder))
    found = reading.check(pairs)
    page = report.data_check(found)
    tree = html_pages.read(page.to_html())
    html_pages.assert_harmless(tree)
    bars = {bar.all("span")[0].text: bar.all("span", "number")[0].text for bar in tree.all("div", "bar")}
    assert bars == {"good (3)": "75.0%", "bad: empty (1)": "25.0%"}
    (table,) = tree.all("table")
    assert [cell.text for cell in table.all("td")] == ["empty", "cat/<b>.png", "is empty (0 bytes)"]
    assert found.verdict in tree.text and "4 × 4 to 6 × 4" in tree.text
    assert all(part in found._repr_html_() for part in page.parts)
