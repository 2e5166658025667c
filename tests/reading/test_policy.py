"""How many bad rows are too many, and what is written about them."""

import json

import pytest

from clip_guidance.data.policy import Ledger, Outcome, Policy, TooManyBadRows
from clip_guidance.data.records import BadRow, Pair, Record


def good(number: int, *captions: str) -> Outcome:
    captions = captions or (f"caption {number}",)
    return Outcome(Record(str(number), "here"), Pair(None, captions, str(number), "here"), size=(number + 2, 2))


def bad(number: int, reason: str = "empty") -> Outcome:
    return Outcome(Record(str(number), "here"), bad=BadRow(reason, f"detail {number}"))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1.0])
@pytest.mark.parametrize("count_bad", [0, 1, 2, 5, 6, 19])
def test_the_share_decides_once_enough_rows_are_read(share, count_bad):
    ledger = Ledger("here", Policy(max_bad_share=share, min_rows=20))
    for number in range(19):
        ledger.record(bad(number) if number < count_bad else good(number))
        ledger.judge()  # never before min_rows
    ledger.record(good(19))
    if count_bad / 20 > share:
        with pytest.raises(
            TooManyBadRows, match=f"here: {count_bad} of 20 rows are bad .*: {count_bad} empty; the first"
        ):
            ledger.judge()
    else:
        ledger.judge()


def test_a_short_source_is_judged_at_its_end():
    ledger = Ledger("here", Policy(max_bad_share=0.5), quarantine=None)
    for outcome in (good(0), bad(1), bad(2, "corrupt"), bad(3, "corrupt")):
        ledger.record(outcome)
    ledger.judge()
    message = (
        r"3 of 4 rows are bad \(75.0%, more than max_bad_share=50.0%\): 2 corrupt, 1 empty; the first is 1: detail 1"
    )
    with pytest.raises(TooManyBadRows, match=message):
        ledger.judge(final=True)


def test_quarantine_is_written_row_by_row_and_appended_to(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"old": 1}\n')
    ledger = Ledger("here", Policy(), path)
    ledger.record(good(0))
    assert len(path.read_text().splitlines()) == 1
    for number in (1, 2):
        ledger.record(bad(number))
        line = json.loads(path.read_text().splitlines()[number])
        assert line == {"origin": "here", "key": str(number), "reason": "empty", "detail": f"detail {number}"}


def test_a_key_that_is_not_unicode_can_be_listed(tmp_path):
    ledger = Ledger("here", Policy(), tmp_path / "bad.jsonl")
    ledger.record(Outcome(Record("caf\udce9.png", "here"), bad=BadRow("empty", "nothing")))
    assert "caf" in json.loads((tmp_path / "bad.jsonl").read_text("utf-8"))["key"]


def test_duplicate_captions_are_counted_and_not_bad():
    ledger = Ledger("here", Policy())
    for number, captions in enumerate([("a", "b"), ("b", "c"), ("a",), ("d",)]):
        ledger.record(good(number, *captions))
    assert (ledger.captions, ledger.duplicates, ledger.good, ledger.bad.total()) == (6, 2, 4, 0)
    assert (ledger.smallest, ledger.largest) == ((2, 2), (5, 2))


def test_at_most_three_examples_are_kept():
    ledger = Ledger("here", Policy())
    for number in range(9):
        ledger.record(bad(number, "empty" if number % 2 else "corrupt"))
    assert {reason: [line["key"] for line in lines] for reason, lines in ledger.examples.items()} == {
        "corrupt": ["0", "2", "4"],
        "empty": ["1", "3", "5"],
    }


def test_counts_go_on_after_a_state():
    first, second = Ledger("here", Policy()), Ledger("here", Policy(max_bad_share=0.3, min_rows=3))
    for outcome in (good(0), bad(1)):
        first.record(outcome)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    second.record(good(2))
    with pytest.raises(TooManyBadRows, match="1 of 3 rows are bad"):  # the bad row was read before the state
        second.judge()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_bad_share": 1.5}, r"max_bad_share: expected a share in \[0, 1\], got 1.5"),
        ({"min_side": 0}, "min_side: expected at least 1, got 0"),
        ({"max_pixels": -1}, "max_pixels: expected at least 1, got -1"),
    ],
)
def test_limits_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Policy(**options)
