"""Files of scores: the same rows from every format, what pairs, and what must not be compared."""

import csv
import json
import math

import pyarrow
import pyarrow.parquet
import pytest

from clip_guidance.score_files import read_scores, refuse_unlike

JUDGE = {"definition": "hessel", "weight": 2.5, "prefix": "A photo depicts ", "fingerprint": "ab12", "dtype": "float32"}


def row(image: str, prompt: str, score: float | None, **changes) -> dict:
    return {"image": image, "prompt": prompt, "score": score, **JUDGE, **changes}


def write(path, rows):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


ROWS = [
    row("out/0.png", "a cat", 0.5),
    row("out/1.png", 'a "red",\nround apple', 0.25),
    row("out/2.png", "a cat", 1.0),
    row("out/3.png", "failed", None),
]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_every_format_says_the_same(tmp_path, suffix):
    found = read_scores(write(tmp_path / f"scores.{suffix}", ROWS))
    assert found.scores("prompt") == {"a cat": 0.75, 'a "red",\nround apple': 0.25}  # the mean over its pictures
    assert list(found.scores("image")) == [(f"{i}.png", ROWS[i]["prompt"]) for i in range(3)]
    assert found.skipped == ["row 4: has no finite score"]
    assert found.settings == {key: str(value) for key, value in JUDGE.items()}
    refuse_unlike(found, read_scores(write(tmp_path / "other.jsonl", ROWS)))


def test_pictures_pair_by_their_path_below_the_folder_they_share(tmp_path):
    one = read_scores(write(tmp_path / "a.jsonl", [row("runs/a/x/0.png", "p", 1), row("runs/a/y/0.png", "p", 2)]))
    other = read_scores(
        write(tmp_path / "b.jsonl", [row("/elsewhere/b/x/0.png", "p", 3), row("/elsewhere/b/y/0.png", "p", 4)])
    )
    assert one.scores("image").keys() == other.scores("image").keys() == {("x/0.png", "p"), ("y/0.png", "p")}


def test_a_killed_runs_last_line_and_odd_scores_are_skipped_by_name(tmp_path):
    path = write(tmp_path / "a.jsonl", [row("0.png", "p", 1), row("1.png", "p", math.nan), row("2.png", "p", "high")])
    path.write_text(path.read_text() + '[1]\n{"image": "3.png", "sc')
    found = read_scores(path)
    assert found.scores() == {"p": 1.0}
    assert found.skipped == [
        "row 2: has no finite score",
        "row 3: has no finite score",
        "row 4: is no row of a table",
        "row 5: is no row of a table",
    ]


@pytest.mark.parametrize(
    "changes,message",
    [
        (
            {"definition": "cosine", "weight": 1.0},
            "not scored alike: definition 'hessel' and 'cosine'; weight '2.5' and",
        ),
        ({"fingerprint": "cd34"}, "not scored alike: fingerprint 'ab12' and 'cd34'$"),
        ({"dtype": "bfloat16"}, "not scored alike: dtype 'float32' and 'bfloat16'$"),
        ({"head": "ef56"}, "not scored alike: head '' and 'ef56'$"),
    ],
)
def test_what_was_not_scored_alike_is_refused(tmp_path, changes, message):
    one = read_scores(write(tmp_path / "a.jsonl", [row("0.png", "p", 1)]))
    other = read_scores(write(tmp_path / "b.csv", [row("0.png", "p", 1, **changes)]))
    with pytest.raises(ValueError, match=message):
        refuse_unlike(one, other)
    refuse_unlike(one, read_scores(write(tmp_path / "c.csv", [row("0.png", "p", 1, model="of any name", seed=3)])))


@pytest.mark.parametrize(
    "name,rows,message",
    [
        (
            "a.jsonl",
            [row("0", "p", 1), row("1", "p", 1, definition="cosine")],
            "differ in definition: 'cosine', 'hessel'",
        ),
        ("a.jsonl", [{"image": "0", "prompt": "p", "score": 1}], "a.jsonl: has no definition, so that it is not known"),
        ("a.csv", [row("0", "p", 1, fingerprint=None)], "a.csv: has no fingerprint"),
        ("a.csv", [row("0", "p", None)], "expected rows with a column score, found none in 1 rows"),
    ],
)
def test_unusable_files(tmp_path, name, rows, message):
    with pytest.raises(ValueError, match=message):
        read_scores(write(tmp_path / name, rows))


def test_unreadable_files(tmp_path):
    with pytest.raises(ValueError, match=r"a.txt: expected a file of scores \(.jsonl, .csv, .parquet\)"):
        read_scores(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        read_scores(tmp_path / "gone.csv")
    (tmp_path / "a.parquet").write_bytes(b"not a table at all")
    with pytest.raises(ValueError, match=r"a.parquet: cannot be read as parquet"):
        read_scores(tmp_path / "a.parquet")
    (tmp_path / "long.csv").write_text("score\n" + "1" * 200_000)
    with pytest.raises(ValueError, match=r"long.csv: field larger than field limit"):
        read_scores(tmp_path / "long.csv")


def test_rows_without_a_key(tmp_path):
    found = read_scores(write(tmp_path / "a.csv", [row("0.png", "", 1), row("", "p", 2)]))
    with pytest.raises(ValueError, match="a.csv: 1 of 2 rows have no prompt"):
        found.scores("prompt")
