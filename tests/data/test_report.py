"""The report before training."""

import json

import pytest
from helpers.corpus import BAD_IMAGES, ODD_IMAGES, encode, noise, number, write_csv, write_folder

from clip_guidance.data import Policy, Report, check, open_pairs
from clip_guidance.data.check import NOTES
from clip_guidance.data.records import REASONS


@pytest.fixture
def report(tmp_path) -> Report:
    rows = [(name, data, [f"a {name}", ""]) for name, (data, *_) in {**BAD_IMAGES, **ODD_IMAGES}.items()]
    rows += [("wide", encode(noise(size=(20, 3))), ["a cmyk"])]
    return check(open_pairs(write_csv(tmp_path, rows), policy=Policy(max_bad_share=0.5), workers=2))


def test_numbers_add_up(report):
    assert report.rows == len(BAD_IMAGES) + len(ODD_IMAGES) + 1
    assert report.good + sum(report.bad.values()) == report.rows
    assert report.bad_share == len(BAD_IMAGES) / report.rows
    assert report.accepted == (report.bad_share <= 0.5) is False
    assert (report.captions, report.duplicate_captions) == (len(ODD_IMAGES) + 1, 1)
    assert set(report.bad) <= set(REASONS) and set(report.notes) <= set(NOTES)
    assert report.smallest == (4, 2) and report.largest == (12, 8)


def test_json_holds_everything(report):
    document = json.loads(json.dumps(report.as_json()))
    assert document["bad"] == report.bad and document["accepted"] is False and document["bad_share"] == report.bad_share
    assert document["largest"] == list(report.largest)


def test_the_table_names_the_first_of_each_reason(report):
    table = {what: (count, share, meaning) for what, count, share, meaning in report.table()}
    assert table["rows"][0] == report.rows and "captions.csv (table)" in table["rows"][2]
    assert table["bad: empty"][0] == 1 and table["bad: empty"][2] == "row 1: is empty (0 bytes)"
    assert table["duplicate captions"][:2] == (1, f"{1 / report.captions:.1%} of captions")
    assert table["cmyk"][2] == "converted from CMYK" and "4 × 2 to 12 × 8 pixels" in table["good"][2]


def test_reasons_counted_before_a_resume_are_reported(tmp_path):
    path = write_folder(tmp_path, [(str(i), number(i) if i else b"", ["x"]) for i in range(4)])
    first, second = (open_pairs(path, policy=Policy(max_bad_share=1)) for _ in range(2))
    next(iter(first))
    second.load_state_dict(first.state_dict())
    list(second)
    report = Report.of(second)
    assert (report.rows, report.bad, report.examples) == (4, {"empty": 1}, {"empty": []})
    assert ("bad: empty", 1, "25.0%", REASONS["empty"]) in report.table()


def test_a_limit_ends_the_reading(tmp_path):
    path = write_folder(tmp_path, [(str(i), number(i), ["x"]) for i in range(6)])
    called = []
    part = check(open_pairs(path, workers=2), limit=4, on_row=lambda: called.append(1))
    assert (part.rows, part.good, part.complete, len(called)) == (4, 4, False, 4)
    assert "only these read" in part.table()[0][3]
    assert check(open_pairs(path)).complete


@pytest.mark.parametrize(
    ("bad", "share", "accepted", "verdict"),
    [
        (0, 0.0, True, r"0 of 4 rows are bad (0.0%), within max_bad_share=0.0%"),
        (1, 0.25, True, r"1 of 4 rows are bad (25.0%), within max_bad_share=25.0%"),
        (1, 0.2, False, r"1 of 4 rows are bad (25.0%), more than max_bad_share=20.0%"),
        (4, 1.0, False, r"4 of 4 rows are bad (100.0%): no pair"),
    ],
)
def test_the_verdict_is_trainings(tmp_path, bad, share, accepted, verdict):
    path = write_folder(tmp_path, [(str(i), b"" if i < bad else number(i), [f"x {i}"]) for i in range(4)])
    pairs = open_pairs(path, policy=Policy(max_bad_share=share))
    report = check(pairs)
    assert (report.accepted, report.verdict) == (accepted, verdict)
    again = open_pairs(path, policy=Policy(max_bad_share=share))
    if accepted:
        assert len(list(again)) == 4 - bad
    else:
        with pytest.raises(ValueError, match="rows"):
            list(again)


def test_captions_that_are_all_the_same_are_not_accepted(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(number(i))
        (tmp_path / f"{i}.txt").write_text("a thing")
    report = check(open_pairs(tmp_path))
    assert not report.accepted
    assert report.verdict == "0 of 3 rows are bad (0.0%), and all 3 captions are the same: a CLIP has nothing to learn"
    (tmp_path / "1.txt").write_text("another")
    assert check(open_pairs(tmp_path)).accepted
    assert check(open_pairs(tmp_path), limit=1).accepted  # not read to its end
