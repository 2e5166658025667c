"""Files of scores: written complete, read back equal, and a torn last line left out."""

import csv
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_guidance.metrics.job.output import is_torn, read_scores, write_scores
from clip_guidance.metrics.job.store import Failure, ScoreRow, ScoresError, record_id

RECORDS = [
    {"definition": "hessel", "weight": 2.5, "clip": "each", "fingerprint": "12e4567890123456", "context_length": 77},
    {"definition": "clip-iqa", "positive": "Good.\r\nPhoto", "fingerprint": "00ff", "context_length": 77},
]
PROMPTS = ["a cat", 'a "red, round"\napple', "ein Bär\r\n", "x"]
SCORES = [
    (
        ScoreRow(f"{i}.png", prompt, record_id(RECORDS[i % 2]), i + 1, f"{i:032x}", 0.1 + i / 3, i == 1, 9, i == 2),
        RECORDS[i % 2],
    )
    for i, prompt in enumerate(PROMPTS)
]


@pytest.fixture(params=[".jsonl", ".csv", ".parquet"])
def path(request, tmp_path):
    path = tmp_path / f"scores{request.param}"
    write_scores(path, SCORES, RECORDS)
    return path


def test_what_is_written_is_read_back(path):
    rows, records = zip(*read_scores(path), strict=True)
    assert list(rows) == [row for row, _ in SCORES]  # to the last bit, and with the same ids of records
    for record, (_, expected) in zip(records, SCORES, strict=True):
        assert {key: str(value) for key, value in record.items()} == {k: str(v) for k, v in expected.items()}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_failures_stand_at_their_places_and_are_no_scores(tmp_path, suffix):
    path = tmp_path / f"scores{suffix}"
    write_scores(path, SCORES, RECORDS, [Failure(0, "=bad.png", "is empty"), Failure(3, "gone.png", "no such file")])
    placed = zip(SCORES, (2, 3, 4, 6), strict=True)  # rows of the file: the failures are the first and the fifth
    assert [row for row, _ in read_scores(path)] == [replace(row, position=place) for (row, _), place in placed]
    if suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["error"] for row in rows] == ["is empty", None, None, None, "no such file", None]


def test_a_parquet_file_carries_its_records_and_types(tmp_path):
    write_scores(tmp_path / "scores.parquet", SCORES, RECORDS)
    schema = pq.read_schema(tmp_path / "scores.parquet")
    assert json.loads(schema.metadata[b"clip_guidance"]) == RECORDS
    assert {name: str(schema.field(name).type) for name in ("score", "weight", "context_length", "guided")} == {
        "score": "double",
        "weight": "double",
        "context_length": "int64",
        "guided": "bool",
    }


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_file_cut_anywhere_gives_its_whole_rows(tmp_path, suffix):
    path = tmp_path / f"scores{suffix}"
    write_scores(path, SCORES, RECORDS)
    data, whole = path.read_bytes(), [row for row, _ in read_scores(path)]
    torn = 0
    for size in range(len(data) - 1, data.index(b"\n"), -1):
        path.write_bytes(data[:size])
        found = [row for row, _ in read_scores(path)]
        assert found == whole[: len(found)] and len(found) >= len(whole) - data[size:].count(b"\n") - 1
        torn += is_torn(path)
    assert torn > 100


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("scores.csv", "precious,data\n1,2\n", r"scores.csv: row 1: expected scores as clip-guidance score writes"),
        ("scores.jsonl", "oops\n{}\n", r"scores.jsonl: row 1: expected scores"),
        (
            "scores.jsonl",
            '{"image": "a", "prompt": "b", "score": "high", "definition": "c"}\n',
            "scores.jsonl: row 1: could not convert",
        ),
        (
            "scores.jsonl",
            '{"image": 5, "prompt": "b", "score": 1, "definition": "c"}\n',
            "scores.jsonl: row 1: expected scores",
        ),
        ("scores.parquet", "PAR1", r"scores.parquet: cannot be read \("),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ScoresError, match=message):
        list(read_scores(tmp_path / name))


def test_a_broken_row_in_the_middle_is_no_torn_line(tmp_path):
    path = tmp_path / "scores.csv"
    write_scores(path, SCORES, RECORDS)
    header, first, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([header, first.replace(",", "", 1), *rest]))
    with pytest.raises(ScoresError, match="row 1: expected scores"):
        list(read_scores(path))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_byte_order_mark_is_no_damage(tmp_path, suffix):
    path = tmp_path / f"scores{suffix}"
    write_scores(path, SCORES, RECORDS)
    whole = list(read_scores(path))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(read_scores(path)) == whole


def test_a_field_above_the_limit_of_csv_is_told(tmp_path):
    row, record = SCORES[0]
    write_scores(tmp_path / "scores.csv", [(replace(row, prompt="x" * 140_000), record)], RECORDS)
    with pytest.raises(ScoresError, match=r"scores.csv: line 2: field larger than field limit"):
        list(read_scores(tmp_path / "scores.csv"))


def test_an_error_while_writing_leaves_the_former_file_and_nothing_else(path):
    before = path.read_bytes()

    def failing():
        yield SCORES[0]
        raise ScoresError("the disk is full")

    with pytest.raises(ScoresError, match="the disk is full"):
        write_scores(path, failing(), RECORDS)
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == [path.name]


@given(st.lists(st.text(st.sampled_from("='+-@a\t\r\n\",")), min_size=1, max_size=4, unique=True))
def test_no_spreadsheet_computes_a_cell_and_we_read_back_what_was_written(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("formulas") / "scores.csv"
    record = {"definition": "hessel", "prefix": "=1+1", "weight": -2.5, "fingerprint": "ab12"}
    key, numbered = record_id(record), enumerate(names, start=1)
    rows = [ScoreRow(name, f"@{name}", key, number, "00", -1.5, False, 2, False) for number, name in numbered]
    write_scores(path, [(row, record) for row in rows], [record])
    with path.open(newline="", encoding="utf-8") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert not [cell for cell in cells if cell.startswith(tuple("=+-@\t\r")) and cell not in ("-1.5", "-2.5")]
    found, records = zip(*read_scores(path), strict=True)
    assert list(found) == rows and records[0] == {**record, "weight": "-2.5"}


def test_a_csv_of_an_earlier_version_keeps_its_values(tmp_path):
    (tmp_path / "old.csv").write_text(
        "image,prompt,score,definition\n=a.png,+1,0.5,clip-iqa:quality with positional embedding\n'x.png,a,1,cosine\n"
    )
    (first, iqa), (second, _) = read_scores(tmp_path / "old.csv")
    assert (first.image, first.prompt, second.image) == ("=a.png", "+1", "'x.png")
    assert iqa == {"definition": "clip-iqa:quality", "positional_embedding": True}
