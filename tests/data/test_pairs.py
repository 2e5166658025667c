"""Order, shares, position and laziness, on a source in memory that counts what is taken from it."""

import itertools
import json
import weakref

import pytest
import torch
from helpers.corpus import number, read_number

from clip_guidance.data import Pairs, Policy, TooManyBadRows
from clip_guidance.data.records import Part, Record
from clip_guidance.data.sources.joined import JoinedSource

ANY = Policy(max_bad_share=1)


class Counted:
    """Parts of the given lengths; rows are numbered through, and those in ``bad`` have no image."""

    name, kind = "counted", "test"

    def __init__(self, lengths, known=True, bad=()):
        ends = list(itertools.accumulate(lengths))
        self.ranges = [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]
        self.parts = [Part(f"part {i}", len(rows) if known else None) for i, rows in enumerate(self.ranges)]
        self.bad, self.taken, self.opened = bad, 0, []

    def read(self, index):
        self.opened.append(index)
        for row in self.ranges[index]:
            self.taken += 1
            yield Record(f"row {row}", self.parts[index].name, None if row in self.bad else number(row), [f"row {row}"])


def rows_of(pairs):
    return [read_number(pair.image) for pair in pairs]


LENGTHS = [5, 3, 7, 1, 4, 6]


def test_without_a_buffer_the_order_is_the_sources():
    assert rows_of(Pairs(Counted(LENGTHS))) == list(range(26))


def test_shuffling_permutes_within_blocks_of_permuted_parts():
    source = Counted([4] * 6)
    order = rows_of(Pairs(source, shuffle_buffer=8, seed=1))
    assert sorted(order) == list(range(24)) and order != list(range(24))
    assert sorted(source.opened) == list(range(6)) and source.opened != list(range(6))
    for block in range(3):  # a block of 8 is two parts of 4, wherever these lie
        expected = [row for part in source.opened[2 * block : 2 * block + 2] for row in source.ranges[part]]
        assert sorted(order[8 * block : 8 * block + 8]) == sorted(expected)


def test_the_order_is_a_function_of_seed_and_epoch():
    def epochs(seed):
        pairs = Pairs(Counted(LENGTHS), shuffle_buffer=10, seed=seed)
        return [rows_of(pairs) for _ in range(3)]

    assert epochs(0) == epochs(0) != epochs(1)
    assert len({tuple(order) for order in epochs(0)}) == 3
    assert all(sorted(order) == list(range(26)) for order in epochs(0))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("shuffle_buffer", [0, 1, 4, 100])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])  # 6 parts: by parts for 1, 2, 3, by rows for 4, 7
def test_shares_are_disjoint_and_complete(count, shuffle_buffer, known):
    for epoch in range(2):
        shares = []
        for index in range(count):
            pairs = Pairs(
                Counted(LENGTHS, known), shard=(index, count), shuffle_buffer=shuffle_buffer, workers=index % 2
            )
            pairs.epoch = epoch
            shares.append(rows_of(pairs))
        assert sorted(row for share in shares for row in share) == list(range(26))


def test_shares_by_parts_open_only_their_own():
    source = Counted([2] * 6)
    list(Pairs(source, shard=(1, 3), shuffle_buffer=4))
    assert len(source.opened) == 2 and source.taken == 4


@pytest.mark.parametrize("known", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("shard", [(1, 2), *(pytest.param(s, marks=pytest.mark.slow) for s in ((0, 1), (2, 4)))])
@pytest.mark.parametrize("shuffle_buffer", [0, 5])
def test_resume_at_every_position_of_three_epochs(shuffle_buffer, shard, known):
    def reader(workers):
        options = {"shuffle_buffer": shuffle_buffer, "shard": shard, "seed": 7, "policy": ANY, "workers": workers}
        return Pairs(Counted([5, 3, 2, 4], known, bad=(0, 4, 9, 13)), **options)

    undisturbed = list(itertools.islice(reader(0).forever(), 25))
    expected = rows_of(undisturbed)
    for position in range(20):
        first, second = reader(position % 3), reader((position + 1) % 3)
        stream = first.forever()
        done = rows_of(itertools.islice(stream, position))
        state = json.loads(json.dumps(first.state_dict()))
        second.load_state_dict(state)
        assert done + rows_of(itertools.islice(second.forever(), 25 - position)) == expected


def test_an_iteration_that_was_broken_off_goes_on():
    pairs = Pairs(Counted(LENGTHS), shuffle_buffer=4, workers=2)
    expected = rows_of(Pairs(Counted(LENGTHS), shuffle_buffer=4))
    first = rows_of(itertools.islice(pairs, 9))
    assert first + rows_of(pairs) == expected and (pairs.epoch, pairs.row) == (1, 0)


def test_a_single_part_is_shuffled_anew_in_each_epoch():
    pairs = Pairs(Counted([12]), shuffle_buffer=6)
    first, second = rows_of(pairs), rows_of(pairs)
    assert sorted(first[:6]) == sorted(second[:6]) == list(range(6)) and first[:6] != second[:6]


def test_resuming_opens_no_part_of_known_length_that_is_done():
    pairs = Pairs(Counted([4] * 6), seed=3, shuffle_buffer=2)
    list(itertools.islice(pairs, 12))
    resumed = Pairs(source := Counted([4] * 6), seed=3, shuffle_buffer=2)
    resumed.load_state_dict(pairs.state_dict())
    list(resumed)
    assert len(source.opened) == 3 and source.taken == 12


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("shuffle_buffer", [0, 4, 8])
def test_no_more_is_read_ahead_than_the_buffer_and_two_rows_a_worker(shuffle_buffer, workers):
    pairs = Pairs(source := Counted([10] * 10), shuffle_buffer=shuffle_buffer, workers=workers)
    stream = iter(pairs)
    for done in range(1, 61):
        next(stream)
        assert source.taken <= done + max(1, shuffle_buffer) + 2 * workers
    stream.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_no_more_records_are_held_than_the_buffer_and_those_under_way(workers):
    """Of several blocks and epochs: neither the block before nor what was handed out is kept."""
    alive, most = weakref.WeakSet(), 0

    class Held:
        """A stored image whose life can be watched."""

        def __init__(self, data):
            self.data = data

        def read(self, max_bytes):
            return self.data

    class Watched(Counted):
        def read(self, index):
            nonlocal most
            for record in super().read(index):
                image = Held(record.image)
                alive.add(image)
                most = max(most, len(alive))
                yield Record(record.key, record.origin, image, record.captions)

    pairs = Pairs(Watched([40] * 6, known=False), shuffle_buffer=16, workers=workers)
    assert sum(1 for _ in itertools.islice(pairs.forever(), 2 * 240)) == 480
    assert 16 <= most <= 16 + 2 * workers + 3  # one being read, one being decoded, one just handed out


@pytest.mark.parametrize("shuffle_buffer", [0, 4])
def test_parts_that_were_read_are_skipped_unopened(shuffle_buffer):
    """A tar says nowhere how many rows it has; what one epoch or run has found out, a resumed one uses."""

    def reader(known=False):
        return Pairs(source := Counted(LENGTHS, known), shuffle_buffer=shuffle_buffer, seed=3), source

    for position in (0, 4, 9, 17, 25, 26 + 13):
        first, _ = reader()
        stream = first.forever()
        seen = [read_number(next(stream).image) for _ in range(position)]
        state = json.loads(json.dumps(first.state_dict()))
        rest = [read_number(next(stream).image) for _ in range(20)]
        second, source = reader()
        second.load_state_dict(state)
        stream = second.forever()
        assert [read_number(next(stream).image) for _ in range(20)] == rest and len(seen) == position
        assert source.taken <= 20 + max(LENGTHS) + 2 * shuffle_buffer  # of one part alone rows are passed over
        if position > 26:
            assert set(second.lengths.items()) == set(enumerate(LENGTHS))


def test_captions_are_read_without_images():
    source = Counted(LENGTHS, bad=(1,))
    found = list(Pairs(source, shuffle_buffer=4, seed=1).captions(10))
    assert len(found) == 10 and all(caption.startswith("row ") for (caption,) in found)
    assert source.taken <= 12  # a row without an image has a caption all the same
    assert len(list(Pairs(Counted(LENGTHS)).captions())) == 26


def test_joined_sources_are_one():
    joined = JoinedSource([Counted([3, 2]), Counted([4])])
    assert joined.name == "counted, counted" and [part.rows for part in joined.parts] == [3, 2, 4]
    assert rows_of(Pairs(joined)) == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert sorted(rows_of(Pairs(joined, shuffle_buffer=9, seed=1))) == [0, 0, 1, 1, 2, 2, 3, 3, 4]


def test_opening_reads_nothing():
    Pairs(source := Counted(LENGTHS), shuffle_buffer=4, workers=2)
    assert source.taken == 0


def test_a_state_of_another_order_is_refused():
    state = Pairs(Counted(LENGTHS), seed=1, shard=(0, 2)).state_dict()
    for other, message in [
        (Pairs(Counted(LENGTHS), seed=2, shard=(0, 2)), "seed is 2 here and 1 in the state"),
        (Pairs(Counted(LENGTHS), seed=1, shard=(0, 3)), r"shard is \[0, 3\] here and \[0, 2\] in the state"),
        (Pairs(Counted(LENGTHS), seed=1, shard=(0, 2), shuffle_buffer=4), "shuffle_buffer is 4 here and 0"),
        (Pairs(Counted([5, 3]), seed=1, shard=(0, 2)), "counted: the state is of another order: parts is"),
    ]:
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"expected \(index, count\) with 0 <= index < count, got \(2, 2\)"):
        Pairs(Counted([1]), shard=(2, 2))
    with pytest.raises(ValueError, match="shuffle_buffer and workers >= 0, got -1 and 0"):
        Pairs(Counted([1]), shuffle_buffer=-1)


def test_an_endless_stream_without_a_pair_ends():
    with pytest.raises(TooManyBadRows, match="counted: there is no row to read"):
        next(Pairs(Counted([1]), shard=(1, 2)).forever())
    with pytest.raises(
        TooManyBadRows, match="none of 2 rows gives a pair: 2 no_image; the first is row 0: there is no"
    ):
        next(Pairs(Counted([2], bad=(0, 1)), policy=ANY).forever())


def test_each_process_has_its_own_quarantine_of_the_first_epoch(tmp_path):
    for index in range(2):
        pairs = Pairs(Counted([6], bad=(2, 3)), shard=(index, 2), policy=ANY, quarantine=tmp_path / "bad.jsonl")
        list(pairs), list(pairs)
    for index in range(2):
        (line,) = (tmp_path / f"bad-{index}-of-2.jsonl").read_text().splitlines()
        assert json.loads(line)["key"] == f"row {2 + index}"


def test_a_quarantine_that_cannot_be_written_fails_at_once(tmp_path):
    Pairs(Counted([1]), quarantine=tmp_path / "new" / "bad.jsonl")
    assert (tmp_path / "new" / "bad.jsonl").read_text() == ""
    with pytest.raises(OSError, match="bad.jsonl"):
        Pairs(Counted([1]), quarantine=tmp_path / "new" / "bad.jsonl" / "deeper" / "x.jsonl")


def test_processes_of_a_loader_are_refused(monkeypatch):
    pairs = Pairs(Counted([4]))
    assert next(iter(pairs)).key == "row 0"
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: object())  # as in a worker process
    with pytest.raises(RuntimeError, match="would each read all pairs; use workers= and num_workers=0"):
        next(iter(pairs))
