"""The file of what is done: found again by image and text, ordered, absorbed, and clear about what it is not."""

import os
import sqlite3
from dataclasses import replace

import pytest

from clip_guidance.metrics.job.store import Failure, ScoreRow, ScoresError, ScoreStore, record_id

RECORDS = [{"definition": "cosine", "weight": 1.0, "clip": "never"}, {"definition": "hessel", "weight": 2.5}]
FIRST, SECOND = map(record_id, RECORDS)
ROW = ScoreRow("a.png", "a cat", FIRST, 0, "00ff", 0.25, False, 4, False)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scores.csv.partial"


def test_a_record_is_the_same_when_its_numbers_have_become_texts():
    assert record_id({"weight": "2.5", "definition": "hessel", "absent": ""}) == SECOND != FIRST


def test_rows_are_known_by_image_bytes_and_text(path):
    with ScoreStore(path) as file:
        assert file.put([ROW]) == 1
    with ScoreStore(path, read_only=True) as file:
        assert file.known("a.png", "a cat", "00ff") == {FIRST: ROW}
        for name, prompt, content in (("b.png", "a cat", "00ff"), ("a.png", "x", "00ff"), ("a.png", "a cat", "11")):
            assert file.known(name, prompt, content) == {}


def test_of_a_pair_given_twice_the_first_counts(path):
    with ScoreStore(path) as file:
        assert file.put([ROW, replace(ROW, position=7)]) == 1
        file.begin(RECORDS)
        assert [row.position for row, _ in file.rows()] == [-1]


def test_rows_come_in_the_order_of_this_run_after_those_of_earlier_ones(path, tmp_path):
    with ScoreStore(path) as base:
        base.put([replace(ROW, image=f"{name}.png", position=i) for i, name in enumerate("ab")])
        base.begin(RECORDS)
        with ScoreStore(tmp_path / "shard") as shard:  # meets b again, and c before it, by two definitions
            rows = [
                replace(ROW, image=f"{name}.png", position=i, record=record)
                for i, name in enumerate("cb")
                for record in (SECOND, FIRST)
            ]
            shard.put(rows, [Failure(2, "d.png", "is empty (0 bytes)")])
        base.absorb(tmp_path / "shard")
        names = [(row.image[0], record["definition"]) for row, record in base.rows()]
        assert names == [("a", "cosine"), ("c", "cosine"), ("c", "hessel"), ("b", "cosine"), ("b", "hessel")]
        assert list(base.failures()) == [Failure(2, "d.png", "is empty (0 bytes)")]
        assert not (tmp_path / "shard").exists()
        base.begin(RECORDS)  # what failed may be well by now
        assert list(base.failures()) == []


def test_the_mean_is_of_the_exact_sum(path):
    numbers = [1e16, 1.0, -1e16, 3.0]  # added one after the other they give 3
    with ScoreStore(path) as file:
        file.begin(RECORDS)
        file.put([replace(ROW, image=f"{i}", score=number, guided=i < 2) for i, number in enumerate(numbers)])
        summary = file.summary(FIRST)
        assert (summary.arithmetic_mean, summary.count, summary.guided, summary.truncated) == (1.0, 4, 2, 0)
        assert file.summary(SECOND).count == 0


def test_a_row_half_put_is_not_there(path):
    def broken():
        yield ROW
        raise KeyboardInterrupt

    with ScoreStore(path) as file:
        with pytest.raises(KeyboardInterrupt):
            file.put(broken())
        assert file.put([ROW]) == 1


def test_a_full_disk_is_told_with_the_file(path):
    with ScoreStore(path) as file:
        file.put([ROW])
        file._db.execute("PRAGMA max_page_count = 8")
        with pytest.raises(ScoresError, match=r"scores.csv.partial: .*full; what was acknowledged before is kept"):
            file.put([replace(ROW, image="x" * 100 + str(number)) for number in range(1000)])
        assert file.known("a.png", "a cat", "00ff") == {FIRST: ROW}


def test_other_files_are_refused(path):
    path.write_bytes(b"precious" * 100)
    with pytest.raises(ScoresError, match=r"scores.csv.partial: file is not a database"):
        ScoreStore(path)
    path.unlink()
    sqlite3.connect(path).execute("PRAGMA user_version = 9").connection.close()
    with pytest.raises(ScoresError, match="expected scores of version 1, got 9; delete it"):
        ScoreStore(path)


def test_what_somebody_else_made_in_the_file_is_refused(path):
    """A view or a trigger would run when the scores are read or written; a pipe would be read for ever."""
    with ScoreStore(path) as file:
        file.put([ROW])
    db = sqlite3.connect(path)
    db.execute("CREATE TRIGGER mine AFTER INSERT ON rows BEGIN DELETE FROM rows; END")
    db.close()
    for read_only in (False, True):
        with pytest.raises(ScoresError, match=r"scores.csv.partial: holds the trigger mine, which is not of this kind"):
            ScoreStore(path, read_only)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ScoresError, match=r"scores.csv.partial.* cannot be read"):
        ScoreStore(path)


def test_a_file_that_is_only_read_must_exist(path):
    with pytest.raises(ScoresError, match="unable to open database file"):
        ScoreStore(path, read_only=True)
