"""The same rows in every layout: the same pairs arrive, and the same policy meets the bad ones."""

import json

import pytest
from helpers.corpus import BAD_IMAGES, LAYOUTS, ODD_IMAGES, encode, noise, number, read_number

from clip_guidance.data import Policy, check, open_pairs

ANY = Policy(max_bad_share=1)


@pytest.fixture(params=LAYOUTS)
def write(request, tmp_path):
    """Writes rows in one of the layouts; returns what to open."""
    return lambda rows: LAYOUTS[request.param](tmp_path, rows)


def test_pairs_arrive_with_all_their_captions(write):
    rows = [(f"{i:03d}", number(i), [f"caption {i}", f'"другая", {i} — 図']) for i in range(7)]
    pairs = list(open_pairs(write(rows)))
    assert [read_number(pair.image) for pair in pairs] == list(range(7))
    assert [pair.captions for pair in pairs] == [tuple(captions) for *_, captions in rows]
    assert len({(pair.origin, pair.key) for pair in pairs}) == 7


def test_every_bad_kind_ends_under_its_reason_and_the_others_arrive(write, tmp_path):
    rows = [(name, data, [f"a {name}"]) for name, (data, *_) in BAD_IMAGES.items()]
    rows += [(name, data, [f"a {name}"]) for name, (data, _) in ODD_IMAGES.items()]
    rows += [("plain", encode(noise()), ["plain"]), ("silent", encode(noise()), [" ", ""])]
    quarantine = tmp_path / "bad.jsonl"
    pairs = open_pairs(write(rows), policy=ANY, quarantine=quarantine)
    assert {pair.captions[0] for pair in pairs} == {"plain"} | {f"a {name}" for name in ODD_IMAGES}
    expected = [reason for _, reason, _ in BAD_IMAGES.values()] + ["no_caption"]
    listed = [json.loads(line) for line in quarantine.read_text("utf-8").splitlines()]
    assert sorted(line["reason"] for line in listed) == sorted(expected)
    assert pairs.counters.bad == {reason: expected.count(reason) for reason in expected}
    notes = [note for _, note in ODD_IMAGES.values()] + ["palette"]  # an animated GIF has a palette, too
    assert {note: pairs.counters.notes[note] for note in notes} == {note: notes.count(note) for note in notes}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("shuffle_buffer", [0, 4])
def test_shards_are_disjoint_and_complete(write, count, shuffle_buffer):
    path = write([(f"{i:03d}", number(i), [f"caption {i}"]) for i in range(14)])
    shares = []
    for index in range(count):
        pairs = open_pairs(path, shard=(index, count), shuffle_buffer=shuffle_buffer)
        shares.append([read_number(pair.image) for pair in pairs])
    assert sorted(row for share in shares for row in share) == list(range(14))
    assert min(map(len, shares)) > 0


def test_resume_at_every_position_is_the_undisturbed_order(write):
    rows = [(f"{i:03d}", b"" if i % 5 == 1 else number(i), [f"caption {i}"]) for i in range(11)]
    path = write(rows)

    def reader(workers=0):
        return open_pairs(path, shuffle_buffer=4, seed=3, policy=ANY, workers=workers)

    undisturbed = [pair.key for pair in reader()]
    assert len(undisturbed) == sum(bool(data) for _, data, _ in rows)
    for position in range(len(undisturbed) + 1):
        first, second = reader(workers=position % 3), reader(workers=(position + 1) % 3)
        started = iter(first)
        done = [next(started).key for _ in range(position)]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert done + [pair.key for pair in second] == undisturbed
        assert second.counters.rows == 11 and second.counters.bad == {"empty": 2}


def test_check_counts_what_reading_would(write):
    path = write([(str(i), number(i) if i else b"", ["the same"]) for i in range(5)])
    report = check(open_pairs(path))
    assert (report.rows, report.good, report.bad, report.complete) == (5, 4, {"empty": 1}, True)
    assert (report.captions, report.duplicate_captions) == (4, 3)
    assert not report.accepted and report.examples["empty"][0]["detail"] == "is empty (0 bytes)"
