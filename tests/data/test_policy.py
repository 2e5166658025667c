"""How many bad rows are too many, and what is written about them."""

import json

import pytest

from clip_guidance.data.policy import Counters, DecodeResult, Policy, TooManyBadRows
from clip_guidance.data.records import BadRow, Pair, Record


def good(number: int, *captions: str) -> DecodeResult:
    captions = captions or (f"caption {number}",)
    return DecodeResult(Record(str(number), "here"), Pair(None, captions, str(number), "here"), size=(number + 2, 2))


def bad(number: int, reason: str = "empty") -> DecodeResult:
    return DecodeResult(Record(str(number), "here"), bad=BadRow(reason, f"detail {number}"))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 1.0])
@pytest.mark.parametrize("count_bad", [0, 1, 2, 5, 6, 19])
def test_the_share_decides_once_enough_rows_are_read(share, count_bad):
    counters = Counters("here", Policy(max_bad_share=share, min_rows=20))
    for number in range(19):
        counters.record(bad(number) if number < count_bad else good(number))
        counters.check_bad_share()  # never before min_rows
    counters.record(good(19))
    if count_bad / 20 > share:
        with pytest.raises(
            TooManyBadRows, match=f"here: {count_bad} of 20 rows are bad .*: {count_bad} empty; the first"
        ):
            counters.check_bad_share()
    else:
        counters.check_bad_share()


def test_a_short_source_is_judged_at_its_end():
    counters = Counters("here", Policy(max_bad_share=0.5), quarantine=None)
    for result in (good(0), bad(1), bad(2, "corrupt"), bad(3, "corrupt")):
        counters.record(result)
    counters.check_bad_share()
    message = (
        r"3 of 4 rows are bad \(75.0%, more than max_bad_share=50.0%\): 2 corrupt, 1 empty; the first is 1: detail 1"
    )
    with pytest.raises(TooManyBadRows, match=message):
        counters.check_bad_share(final=True)


def test_quarantine_is_written_row_by_row_and_appended_to(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"old": 1}\n')
    counters = Counters("here", Policy(), path)
    counters.record(good(0))
    assert len(path.read_text().splitlines()) == 1
    for number in (1, 2):
        counters.record(bad(number))
        line = json.loads(path.read_text().splitlines()[number])
        assert line == {"origin": "here", "key": str(number), "reason": "empty", "detail": f"detail {number}"}


def test_a_key_that_is_not_unicode_can_be_listed(tmp_path):
    counters = Counters("here", Policy(), tmp_path / "bad.jsonl")
    counters.record(DecodeResult(Record("caf\udce9.png", "here"), bad=BadRow("empty", "nothing")))
    assert "caf" in json.loads((tmp_path / "bad.jsonl").read_text("utf-8"))["key"]


def test_duplicate_captions_are_counted_and_not_bad():
    counters = Counters("here", Policy())
    for number, captions in enumerate([("a", "b"), ("b", "c"), ("a",), ("d",)]):
        counters.record(good(number, *captions))
    assert (counters.captions, counters.duplicates, counters.good, counters.bad.total()) == (6, 2, 4, 0)
    assert (counters.smallest, counters.largest) == ((2, 2), (5, 2))


def test_at_most_three_examples_are_kept():
    counters = Counters("here", Policy())
    for number in range(9):
        counters.record(bad(number, "empty" if number % 2 else "corrupt"))
    assert {reason: [line["key"] for line in lines] for reason, lines in counters.examples.items()} == {
        "corrupt": ["0", "2", "4"],
        "empty": ["1", "3", "5"],
    }


def test_counts_go_on_after_a_state():
    first, second = Counters("here", Policy()), Counters("here", Policy(max_bad_share=0.3, min_rows=3))
    for result in (good(0), bad(1)):
        first.record(result)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()
    second.record(good(2))
    with pytest.raises(TooManyBadRows, match="1 of 3 rows are bad"):  # the bad row was read before the state
        second.check_bad_share()


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
