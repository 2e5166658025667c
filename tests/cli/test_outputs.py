"""Files of rows, the last line of a run, and the matrix that is too large to print."""

import csv
import json
import sys
from io import StringIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image


def read(path: Path) -> list[dict]:
    """The rows of a table in any format; empty cells are None."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return [{name: value or None for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_what_failed_has_a_row_with_its_reason(cli, clip, images, good, suffix, tmp_path):
    for command, options in (
        ("score", ["--prompt", "a cat"]),
        ("classify", ["--labels", "cat, \"guinea pig, long-haired\""]),
        ("similar", []),
        ("similar", ["--to", good[0]]),
    ):
        output = tmp_path / f"{len(options)}{command}.{suffix}"
        done = cli(command, images, *options, "--model", clip, "--output", output)
        assert done.code == 1 and done.err.splitlines()[-1] == "3 of 4 done, 1 failed"
        rows = read(output)
        (failed,) = [row for row in rows if row["error"] is not None]
        assert (failed["image"], failed["error"]) == (str(images / "broken.png"), "is empty (0 bytes)")
        assert all(value is None for name, value in failed.items() if name not in ("image", "error"))
        assert sorted(row["image"] for row in rows if row["error"] is None) == list(map(str, good))
        assert "a.png" not in done.out
        if command == "classify":
            assert {row["label"] for row in rows} <= {"cat", "guinea pig, long-haired", None}
        again = cli(command, images, *options, "--model", clip, "--output", output)
        assert again.code == 2 and "overwritten" in again.err and read(output) == rows


@pytest.mark.slow
def test_failed_rows_are_no_scores_to_those_who_read_them(cli, clip, images, good, tmp_path):
    output = tmp_path / "scores.csv"
    words = ["score", images, "--prompt", "a cat", "--model", clip, "--output", output]
    cli(*words)
    compared = cli("compare", output, output, "--on", "image", "--json")
    assert compared.code == 0 and compared.json["pairs"] == 3
    Image.new("RGB", (32, 32)).save(images / "broken.png")  # has come whole by now
    done = cli(*words, "--resume", "-q")
    assert (done.code, done.err) == (0, "") and done.table[1][-1] == "4"
    assert [row["error"] for row in read(output)] == [None] * 4


@pytest.mark.slow
def test_programs_that_read_stdout_are_told_too(cli, clip, images, good):
    for words in (["similar", "--to", good[0]], ["classify", "--labels", "cat"], ["score", "--prompt", "a cat"]):
        header, *rows = cli(*words, images, "--model", clip).table
        assert header[-1] == "error" and [row[-1] for row in rows] == ["", "", "", "is empty (0 bytes)"]


@pytest.mark.slow
def test_a_large_matrix_is_not_printed(cli, clip, images, tmp_path):
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(images / f"{number}.png")
    done = cli("similar", images, "--model", "is never looked for")
    said = " ".join(done.err.replace("│", " ").split())
    assert (done.code, done.out) == (2, "")
    assert "the matrix of 24 images is too large to print: give --output FILE.csv, --to IMAGE or --duplicates" in said
    assert cli("similar", images, "--model", clip, "--output", tmp_path / "matrix.csv").out == ""
    rows = read(tmp_path / "matrix.csv")
    names = [row["image"] for row in rows if not row["error"]]
    assert list(rows[0]) == ["image", *names, "error"] and len(names) == 23
    assert [float(row[row["image"]]) for row in rows if not row["error"]] == pytest.approx([1] * 23, abs=1e-5)


COLUMNS = ["--image-column", "photograph", "--prompt-column", "says"]


@pytest.mark.slow
def test_columns_are_chosen_by_name(cli, clip, good, tmp_path, monkeypatch):
    rows = [{"photograph": str(path), "image": "gone.png", "says": "a cat", "prompt": "no"} for path in good]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    expected = cli("score", *good, "--prompt", "a cat", "--model", clip, "--json").json["results"]
    for name in ("rows.csv", "rows.jsonl"):
        for given in (tmp_path / name, "-"):
            monkeypatch.setattr(sys, "stdin", StringIO((tmp_path / name).read_text()))
            done = cli("score", given, *COLUMNS, "--model", clip, "--json")
            assert done.code == 0 and done.json["results"] == expected


@pytest.mark.slow
def test_columns_that_are_not_there_are_named(cli, clip, good, tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("photograph,prompt\na.png,x\n")
    done = cli("score", tmp_path / "rows.csv", "--image-column", "photo")
    assert done.code == 2 and "rows.csv: no column photo; it has 'photograph', 'prompt'" in done.err
    assert "--image-column" in done.err
    done = cli("score", tmp_path / "rows.csv", *COLUMNS)
    assert done.code == 2 and "no column says" in done.err and "--prompt-column" in done.err
    monkeypatch.setattr(sys, "stdin", StringIO("photograph,prompt\na.png,x\n"))
    done = cli("score", "-", "--image-column", "photo", "--definition", "cosine", "--model", clip)
    assert done.code == 2 and "--image-column: standard input: no column photo" in done.err
    done = cli("score", good[0], "--prompt-column", "says")
    assert done.code == 2 and "--prompt-column is for tables" in done.err
