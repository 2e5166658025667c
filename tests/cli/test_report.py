"""``--report``: a page beside the results, never instead of them, and never over anything but a report."""

import pytest
from helpers import html_pages

from clip_guidance.clip import CLIP


@pytest.fixture
def report(tmp_path):
    return tmp_path / "report.html"


@pytest.fixture
def page(report):
    """Reads the report, which holds nothing that runs."""

    def page():
        tree = html_pages.read(report.read_text("utf-8"))
        html_pages.assert_harmless(tree)
        return tree

    return page


def titles(page):
    return [image.attributes["title"] for image in page.all("img")]


@pytest.mark.slow
def test_classify_reports_what_it_prints(cli, clip, images, good, report, page):
    words = ["classify", images, "--labels", "cat,<b>dog</b>", "--model", clip, "--batch-size", 2]
    done = cli(*words, "--report", report, "--json")
    assert done.code == 1 and f"report: {report}" in done.err
    assert done.json == cli(*words, "--json").json
    assert titles(page()) == list(map(str, good))
    shown = [card.all("p", "value")[0].text for card in page().all("li", "card")]
    assert shown == [row["label"] for row in done.json["results"]]
    assert f"{images}/broken.png is empty (0 bytes)" in page().text


def test_classify_reports_the_confusion(cli, clip, good, report, page):
    done = cli("classify", *good, "--truth", "folders", "--model", clip, "--report", report, "--json")
    assert done.code == 0
    (table,) = page().all("table")
    cells = [[int(cell.text) for cell in row.all("td")] for row in table.all("tr")[1:]]
    assert cells == done.json["metrics"]["confusion"] == [[3]]


def test_classify_without_a_readable_image_still_reports_why(cli, clip, images, report, page):
    done = cli("classify", images / "broken.png", "--labels", "a,b", "--model", clip, "--report", report)
    assert done.code == 1 and "0 images" in page().text and "is empty (0 bytes)" in page().text


@pytest.mark.slow
def test_similar_reports_matrix_ranking_and_duplicates(cli, clip, images, good, report, page):
    words = ["similar", images, "--model", clip, "--report", report, "--json"]
    matrix = cli(*words).json["similarity"]
    rows = [[float(cell.text) for cell in row.all("td", "shade")] for row in page().all("tr")[1:4]]
    assert rows == [[round(value, 3) for value in row] for row in matrix]
    ranked = cli(*words, "--to", good[1]).json["results"]
    assert titles(page()) == [str(good[1]), *(row["image"] for row in ranked)]
    groups = cli(*words, "--duplicates", 0.01).json["duplicates"]
    assert titles(page()) == [name for group in groups for name in group]


def test_search_and_the_duplicates_of_an_index_report(cli, clip, good, tmp_path, report, page):
    index = tmp_path / "photos.index"
    cli("index", *good, "--index", index, "--model", clip, "--metadata", "album=<x>")
    found = cli("search", good[1], "--index", index, "--report", report, "--json").json["results"]
    assert titles(page()) == [row["image"] for row in found] and "album: <x>" in page().text
    groups = cli("similar", "--index", index, "--duplicates", 0.01, "--report", report, "--json").json["duplicates"]
    assert titles(page()) == [name for group in groups for name in group]


def test_generate_reports_what_it_drew(cli, clip, pipeline, tmp_path, report, page):
    options = ["--model", pipeline, "--clip", clip, "--steps", 2, "--output", tmp_path / "drawn", "--report", report]
    done = cli("generate", "--prompt", "a <b> & c", "--num-images", 2, *options, "--json")
    assert titles(page()) == [row["image"] for row in done.json]
    lines = [[line.text for line in card.all("p", "line")] for card in page().all("li", "card")]
    assert [line[:2] for line in lines] == [["a <b> & c", "seed 0"], ["a <b> & c", "seed 1"]]
    assert [line[2].split()[0] for line in lines] == [f"{row['scores'][0]['score']:.3f}" for row in done.json]


def test_score_reports_every_definition(cli, clip, images, good, tmp_path, report, page):
    words = ["score", images, "--prompt", "a <b>", "--model", clip, "--report", report, "--json"]
    done = cli(*words, "--definition", "torchmetrics", "--definition", "cosine")
    assert done.code == 1 and sorted(titles(page())) == sorted(2 * [str(path) for path in good])
    wanted = sorted(f"{row['score']:.3f}" for row in done.json["results"])
    assert sorted(value.text for value in page().all("p", "value")) == wanted
    assert f"{images}/broken.png is empty (0 bytes)" in page().text and "a <b>" in page().text
    output = tmp_path / "scores.jsonl"
    assert cli(*words, "--output", output).code == 1 and output.exists()
    assert sorted(titles(page())) == [str(path) for path in good]


@pytest.mark.slow
def test_compare_reports_its_pairs(cli, clip, good, tmp_path, report, page):
    for number, name in enumerate("ab"):
        table = tmp_path / f"{name}.csv"
        lines = [f"{good[number]},a cat", f"{good[2]},a dog"]
        table.write_text("\n".join(["image,prompt", *lines]) + "\n")
        cli("score", table, "--model", clip, "--output", tmp_path / f"{name}.jsonl")
    done = cli("compare", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--resamples", 20, "--report", report, "--json")
    rows = [[cell.text for cell in row.all("td")] for row in page().all("tr")[1:]]
    assert rows == [
        [row["prompt"], f"{row['a']:.3f}", f"{row['b']:.3f}", f"{row['difference']:+.3f}"]
        for row in done.json["results"]
    ]


def test_data_check_reports_what_it_counts(cli, images, report, page):
    done = cli("data", "check", images, "--report", report, "--json")
    assert f"no_caption ({done.json['bad']['no_caption']})" in page().text


def test_what_was_done_before_ctrl_c_is_reported(cli, clip, good, report, page, monkeypatch):
    encode, calls = CLIP.image_embeds, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(CLIP, "image_embeds", interrupted)
    words = ["--labels", "cat,dog", "--model", clip, "--batch-size", 1, "--report", report]
    assert cli("classify", *good, *words).code == 130
    assert titles(page()) == list(map(str, good[:2]))


@pytest.mark.parametrize("command", ["classify", "similar"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.html", "exists and is no report of clip_guidance; it is not overwritten"),
        ("report.pdf", "a report must end in .html or .htm, got report.pdf"),
        ("mine.html/report.html", "mine.html is no folder that can be written to"),
    ],
)
def test_where_no_report_may_go_is_told_before_the_work(cli, good, tmp_path, command, name, message):
    (tmp_path / "mine.html").write_text("precious")
    done = cli(command, *good, "--model", "no/such/model", "--report", tmp_path / name)
    assert (done.code, done.out) == (2, "") and (tmp_path / "mine.html").read_text() == "precious"
    assert message in " ".join(done.err.replace("│", " ").split())


def test_a_report_that_cannot_be_written_costs_no_result(cli, clip, good, report, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clip_guidance.report.html.page.Page.save", full)
    done = cli("classify", *good, "--labels", "a,b", "--model", clip, "--report", report, "--json")
    assert done.code == 2 and "No space left" in done.err and len(done.json["results"]) == len(good)
