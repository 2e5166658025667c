"""Files of scores: the same rows from every format, what pairs, and what must not be compared."""

import json
import math

import pytest

from clip_guidance.metrics.job.output import as_dict, write_scores
from clip_guidance.metrics.job.results import find_comparable, read_scores
from clip_guidance.metrics.job.store import ScoreRow, record_id

HESSEL = {"definition": "hessel", "weight": 2.5, "prefix": "A photo depicts ", "model": "m", "fingerprint": "ab12"}
COSINE = {"definition": "cosine", "weight": 1.0, "model": "m", "fingerprint": "ab12"}


def row(image: str, prompt: str, score: float, record: dict = HESSEL) -> tuple[ScoreRow, dict]:
    return ScoreRow(image, prompt, record_id(record), 0, "00", score, False, None, False), record


def write(path, *rows):
    write_scores(path, rows, list({record_id(record): record for _, record in rows}.values()))
    return path


def only(path):
    (found,) = read_scores(path)
    return found


APPLE = 'a "red",\nround apple'
ROWS = [row("out/0.png", "a cat", 0.5), row("out/1.png", APPLE, 0.25), row("out/2.png", "a cat", 1.0)]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_every_format_says_the_same(tmp_path, suffix):
    path, nan = tmp_path / f"scores.{suffix}", row("out/3.png", "a dog", math.nan)
    if suffix == "jsonl":  # JSON has no NaN and we write none, but Python does
        write(path, *ROWS)
        path.write_text(path.read_text() + json.dumps(as_dict(*nan)) + "\n")
    else:
        write(path, *ROWS, nan)
    found = read_scores(path)
    assert found[0].scores("prompt") == {"a cat": 0.75, APPLE: 0.25}  # the mean over its images
    assert list(found[0].scores("image")) == [("0.png", "a cat"), ("1.png", APPLE), ("2.png", "a cat")]
    assert found[0].skipped == ["out/3.png: hessel by m: its score is nan"]
    assert str(found[0]) == "hessel by m" and found[0].record == {key: str(value) for key, value in HESSEL.items()}
    other = read_scores(write(tmp_path / "other.jsonl", *ROWS))
    assert find_comparable(found, other) == (found[0], other[0])


def test_images_pair_by_their_path_below_the_folder_they_share(tmp_path):
    one = only(write(tmp_path / "a.jsonl", row("runs/a/x/0.png", "p", 1.0), row("runs/a/y/0.png", "", 2.0)))
    other = only(write(tmp_path / "b.jsonl", row("/else/b/x/0.png", "p", 3.0), row("/else/b/y/0.png", "", 4.0)))
    assert one.scores("image").keys() == other.scores("image").keys() == {("x/0.png", "p"), ("y/0.png", "")}
    with pytest.raises(ValueError, match="a.jsonl: 1 of 2 rows have no prompt; pair on image"):
        one.scores("prompt")


def test_a_killed_writers_last_line_is_left_out(tmp_path):
    path = write(tmp_path / "a.jsonl", *ROWS)
    path.write_text(path.read_text() + '{"image": "3.png", "sc')
    assert len(only(path).rows) == 3


@pytest.mark.parametrize(
    "record,message",
    [
        (COSINE, "not scored alike: definition 'hessel' and 'cosine'; weight '2.5' and '1.0'; prefix '.*' and ''$"),
        ({**HESSEL, "fingerprint": "cd34"}, "not scored alike: fingerprint 'ab12' and 'cd34'$"),
        ({**HESSEL, "decode": "draft"}, "not scored alike: decode '' and 'draft'$"),
    ],
)
def test_what_was_not_scored_alike_is_refused(tmp_path, record, message):
    one = read_scores(write(tmp_path / "a.jsonl", row("0.png", "p", 1.0)))
    other = read_scores(write(tmp_path / "b.csv", row("0.png", "p", 1.0, record)))
    with pytest.raises(ValueError, match=message):
        find_comparable(one, other)


def test_a_model_is_one_under_any_name(tmp_path):
    one = read_scores(write(tmp_path / "a.jsonl", row("0.png", "p", 1.0)))
    other = read_scores(write(tmp_path / "b.csv", row("0.png", "p", 1.0, {**HESSEL, "model": "/elsewhere/m"})))
    assert find_comparable(one, other, "hessel", "m")[1].record["model"] == "/elsewhere/m"


def test_of_several_scores_the_common_one_or_the_one_that_is_asked_for(tmp_path):
    judge = {**HESSEL, "model": "n", "fingerprint": "cd34"}
    several = [row("0.png", "p", 1.0), row("0.png", "p", 2.0, COSINE), row("0.png", "p", 3.0, judge)]
    a, b = (read_scores(write(tmp_path / f"{name}.csv", *several)) for name in "ab")
    with pytest.raises(
        ValueError, match="in both: hessel by m; cosine by m; hessel by n; choose one by its definition and model$"
    ):
        find_comparable(a, b)
    assert [found.scores()["p"] for found in find_comparable(a, b, "cosine")] == [2.0, 2.0]
    assert [found.scores()["p"] for found in find_comparable(a, b, model="n")] == [3.0, 3.0]
    assert find_comparable(a, b[1:2]) == (a[1], b[1])
    with pytest.raises(
        ValueError, match="no score 'cosine by n' in both files: hessel by m, cosine by m, hessel by n and hessel"
    ):
        find_comparable(a, b, "cosine", "n")
    with pytest.raises(ValueError, match="not scored alike: hessel by m, cosine by m and hessel by n$"):
        find_comparable(a[:2], b[2:])


def test_unusable_files(tmp_path):
    with pytest.raises(ValueError, match=r"a.txt: expected a file of scores \(.jsonl, .csv, .parquet\)"):
        read_scores(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        read_scores(tmp_path / "gone.csv")
    with pytest.raises(ValueError, match="nan.csv: holds no scores"):
        read_scores(write(tmp_path / "nan.csv", row("0", "p", math.inf)))
    anonymous = {"definition": "hessel", "model": "m"}
    with pytest.raises(ValueError, match="own.jsonl: has no fingerprint of the judge"):
        read_scores(write(tmp_path / "own.jsonl", row("0", "p", 1.0, anonymous)))
    (tmp_path / "bad.jsonl").write_text(json.dumps({"image": "0", "prompt": "p"}) + "\n")
    with pytest.raises(ValueError, match="bad.jsonl: row 1: expected scores as clip-guidance score writes them"):
        read_scores(tmp_path / "bad.jsonl")


def test_what_definition_and_model_do_not_tell_apart_is_told_by_what_differs(tmp_path):
    half = {**HESSEL, "dtype": "bfloat16"}
    rows = [row("0.png", "p", 1.0, {**HESSEL, "dtype": "float32"}), row("0.png", "p", 2.0, half)]
    a, b = (read_scores(write(tmp_path / f"{name}.csv", *rows)) for name in "ab")
    told = r"hessel by m \(dtype 'float32'\); hessel by m \(dtype 'bfloat16'\); definition and model do not tell them"
    with pytest.raises(ValueError, match=told):
        find_comparable(a, b, "hessel", "m")
