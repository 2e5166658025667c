"""``score`` on what no one should give it: each is told by name, and costs nothing else its score."""

import csv
import io
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clip_guidance.metrics.job import processes
from clip_guidance.metrics.job.store import ScoreStore


def with_record(path: Path, record: object) -> Path:
    """An image that carries a record as another program may have written it."""
    info = PngInfo()
    info.add_text("clip_guidance", json.dumps(record))
    Image.new("RGB", (40, 40), "red").save(path, pnginfo=info)
    return path


def reasons(done) -> dict[str, str]:
    return {Path(failure["path"]).name: failure["reason"] for failure in done.json["failed"]}


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(cli, prompt):
    done = cli("score", "a.png", "--prompt", prompt)
    assert (done.code, done.out) == (2, "") and "--prompt is empty" in done.err


def test_records_of_other_programs_cost_no_score(cli, clip, good, tmp_path):
    guide = with_record(tmp_path / "guide.png", {"settings": {}, "guide": "a word"})
    numbers = with_record(tmp_path / "numbers.png", {"settings": {"clip_prompt": ["a"], "prompt": 5}})
    half = with_record(tmp_path / "half.png", {"settings": {"prompt": "\ud800"}})
    given = cli("score", guide, numbers, half, good[0], "--prompt", "a cat", "--model", clip, "--json")
    assert given.code == 0 and [row["guided"] for row in given.json["results"]] == [False] * 4
    found = cli("score", guide, numbers, half, good[0], "--definition", "clip-iqa", "--model", clip, "--json")
    assert [row["prompt"] for row in found.json["results"]] == ["", "", ""]
    assert reasons(found) == {"half.png": r"its prompt is no valid text: '\ud800'"}


def test_texts_that_are_none_cost_no_score(cli, clip, good, tmp_path, monkeypatch):
    lines = [{"image": str(good[0]), "prompt": "\ud800"}, {"image": "a\0.png"}, {"image": "\udcff.png"}]
    lines.append({"image": str(good[1])})
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(line) + "\n" for line in lines)))
    with pytest.raises(ValueError) as null:  # each Python has words of its own
        os.stat("a\0.png")
    done = cli("score", "-", "--prompt", "a cat", "--model", clip, "--output", tmp_path / "x.csv", "--json")
    assert done.code == 1 and [row["image"] for row in done.json["results"]] == [str(good[1])]
    assert reasons(done) == {
        "a.png": r"its prompt is no valid text: '\ud800'",
        "a\0.png": f"cannot be read ({null.value})",
        r"\udcff.png": "its name is not valid text; rename it",
    }


def test_an_image_of_too_many_pixels_is_passed_over_also_as_a_draft(cli, clip, good, tmp_path, monkeypatch):
    Image.new("RGB", (100, 90)).save(tmp_path / "large.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    words = ["--prompt", "a cat", "--model", clip, "--json", "--draft"]
    done = cli("score", tmp_path / "large.jpg", good[0], *words)
    assert done.code == 1 and len(done.json["results"]) == 1 and "too large" in reasons(done)["large.jpg"]


def test_the_folder_of_the_output_is_made_and_nothing_else_is_left(cli, clip, good, tmp_path):
    output = tmp_path / "deep" / "er" / "scores.jsonl"
    assert cli("score", good[0], "--prompt", "a cat", "--model", clip, "--output", output).code == 0
    assert cli("score", good[0], "--prompt", "a cat", "--model", "gone", "--output", output, "--resume").code == 2
    assert [path.name for path in output.parent.iterdir()] == ["scores.jsonl"]


def test_an_output_that_cannot_be_written_is_told_before_the_work(cli, good, tmp_path, monkeypatch):
    words = ["score", good[0], "--prompt", "a cat", "--model", "is never looked for", "--output"]
    (tmp_path / "folder.csv").mkdir()
    assert "folder.csv: expected a file, got a folder" in cli(*words, tmp_path / "folder.csv").err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "x.parquet: parquet needs pyarrow: pip install" in cli(*words, tmp_path / "x.parquet").err


def test_lines_for_other_programs_hold_any_prompt(cli, clip, good):
    prompt = 'a "red"\n\tapple\r\n'
    done = cli("score", good[0], "--prompt", prompt, "--model", clip)
    rows = list(csv.reader(io.StringIO(done.out, newline=""), "excel-tab"))
    assert len(rows) == 2 and rows[1][:2] == [str(good[0]), prompt]


def test_json_is_json_whatever_the_terminal_writes(cli, clip, good, tmp_path, monkeypatch):
    named = good[0].rename(tmp_path / "é 🍎.png")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    assert cli("score", named, "--prompt", "🍎", "--model", clip, "--json").code == 0
    sys.stdout.flush()
    (row,) = json.loads(raw.getvalue().decode("latin-1"))["results"]
    assert (row["image"], row["prompt"]) == (str(named), "🍎")


def test_a_process_that_is_not_the_first_ends_well_for_the_launcher(cli, clip, good, tmp_path, monkeypatch):
    """A launcher that sees a process fail ends the others, of which the first is still writing."""
    monkeypatch.setattr(processes, "find_processes", lambda device: processes.Processes(1, 2, "cpu"))
    good[1].write_bytes(b"")
    with ScoreStore(tmp_path / "x.csv.partial"):  # as the first process has begun it
        pass
    words = ["--prompt", "a cat", "--model", clip, "--output", tmp_path / "x.csv", "--batch-size", 1]
    done = cli("score", *good, *words)
    assert (done.code, done.out) == (0, "") and "b.png: is empty" in done.err
    with ScoreStore(tmp_path / "x.csv.partial-1") as own:
        assert [Path(failure.image).name for failure in own.failures()] == ["b.png"]
