"""A whole run: what is scored, what is not scored again, and that the way there does not show in the result."""

import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from helpers.scoring_helpers import count_calls, judges_of, score_all
from PIL import Image

from clip_guidance._threads import ordered_map
from clip_guidance.clip.embed_cache import EmbedCache
from clip_guidance.metrics.job.items import read_items
from clip_guidance.metrics.job.judge import Judge
from clip_guidance.metrics.job.output import read_scores
from clip_guidance.metrics.job.processes import Processes
from clip_guidance.metrics.job.run import Job, Options, score_items
from clip_guidance.metrics.job.store import Failure, ScoresError
from clip_guidance.metrics.registry import score_images

SCORES = ("torchmetrics", "hessel", "clip-iqa:good photo")


def by_definition(path, definition, model=None):
    return {
        row.image: row.score
        for row, record in read_scores(path)
        if record["definition"] == definition and model in (None, record["model"])
    }


def test_several_judges_and_scores_in_one_pass(tiny_clip, other_clip, many, tmp_path, monkeypatch):
    judges, output = judges_of(tiny_clip, other_clip, scores=SCORES), tmp_path / "scores.jsonl"
    encoded = count_calls(monkeypatch, Judge, "encode")
    done = score_all(output, many, judges)
    assert [failure for block in done for failure in block.failures] == [
        Failure(8, str(many / "08.png"), "is not an image")
    ]
    assert sum(len(pixels) for (pixels,) in encoded) == 2 * 20  # each image once by each judge
    good = [path for path in sorted(many.iterdir()) if path.name != "08.png"]
    for clip, name in itertools.product((tiny_clip, other_clip), SCORES):
        expected = score_images(clip, good, name, None if name.startswith("clip-iqa") else "a cat")
        definition = judges[0].definitions[SCORES.index(name)].record["definition"]
        found = by_definition(output, definition, str(clip.name_or_path))
        assert list(found) == list(map(str, good))
        assert list(found.values()) == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("processes", [2, 3])
def test_shares_merge_to_the_file_of_one_process(tiny_clip, other_clip, many, tmp_path, processes):
    judges = judges_of(tiny_clip, other_clip, scores=SCORES[:2])
    score_all(tmp_path / "one.csv", many, judges)
    score_all(tmp_path / "shared.csv", many, judges, processes=processes)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "shared.csv").read_bytes()


def test_processes_that_found_different_images_are_told_to_begin_again(tiny_clip, many, tmp_path):
    """Half of the images would be without a score otherwise, without a word."""
    judges, output = judges_of(tiny_clip, scores=SCORES[:1]), tmp_path / "scores.csv"
    given, works = {}, []
    for rank, folder in enumerate((many, many / "00.png")):
        works.append(Job(output, Processes(rank, 2, gather=lambda _: list(given.values()))))
        works[rank].begin(judges)
        list(score_items(read_items([folder], "a cat"), judges, works[rank], Options(1)))
        given[rank] = works[rank].given
    with pytest.raises(ScoresError, match="found different images: all machines must see the same.*kept.*--resume"):
        works[0].finish()
    given[1] = ""  # it was interrupted: what was done is written all the same
    works[0].finish()


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_resuming_computes_only_what_is_missing(tiny_clip, other_clip, many, tmp_path, suffix, monkeypatch):
    output, alone = tmp_path / f"scores.{suffix}", tmp_path / f"alone.{suffix}"
    score_all(output, many, judges_of(tiny_clip))
    encoded = count_calls(monkeypatch, Judge, "encode")
    score_all(output, many, judges_of(tiny_clip))
    assert encoded == []  # nothing is new

    shutil.copy(many / "00.png", many / "08.png")  # well again
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(many / "03.png")  # changed
    Image.fromarray(np.full((32, 32, 3), 99, np.uint8)).save(many / "99.png")  # new
    score_all(output, many, judges_of(tiny_clip))
    assert sum(len(pixels) for (pixels,) in encoded) == 3
    encoded.clear()
    score_all(output, many, judges_of(tiny_clip, other_clip, scores=SCORES[:2]))
    assert sum(len(pixels) for (pixels,) in encoded) == 2 * 22  # another score and another model of all

    score_all(alone, many, judges_of(tiny_clip, other_clip, scores=SCORES[:2]))
    ours, theirs = (
        {(row.image, row.record): (row.position, row.hash, row.score) for row, _ in read_scores(path)}
        for path in (output, alone)
    )
    assert list(ours) == list(theirs)
    for key, (position, content, score) in theirs.items():
        assert ours[key][:2] == (position, content)
        assert ours[key][2] == pytest.approx(score, abs=1e-4)  # other neighbours, other last bits


def test_a_torn_last_line_costs_its_row_only(tiny_clip, many, tmp_path, monkeypatch):
    output = tmp_path / "scores.csv"
    score_all(output, many, judges_of(tiny_clip))
    whole = output.read_bytes()
    output.write_bytes(whole[:-9])
    assert Job(output, Processes()).torn()
    encoded = count_calls(monkeypatch, Judge, "encode")
    score_all(output, many, judges_of(tiny_clip), batch_size=1)
    assert sum(len(pixels) for (pixels,) in encoded) == 1
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [str(many / f"{i:02}.png") for i in range(21)]
    assert [place for place, row in enumerate(rows) if row["error"]] == [8]


def test_rows_of_images_that_are_not_given_again_stay(tiny_clip, many, tmp_path):
    output = tmp_path / "scores.jsonl"
    score_all(output, many, judges_of(tiny_clip))
    score_all(output, many / "20.png", judges_of(tiny_clip))
    assert sorted(by_definition(output, "torchmetrics")) == [str(many / f"{i:02}.png") for i in range(21) if i != 8]


def test_a_pair_given_twice_is_scored_once(tiny_clip, many, tmp_path):
    output, judges = tmp_path / "scores.jsonl", judges_of(tiny_clip)
    work = Job(output, Processes())
    work.begin(judges)
    items = read_items([many / "00.png", many / "01.png", many / "00.png"], "a cat")
    done = list(score_items(items, judges, work, Options(2)))
    assert [block.repeated for block in done] == [0, 1]


def test_a_cache_serves_another_run(tiny_clip, many, tmp_path, monkeypatch):
    with EmbedCache(tmp_path / "cache") as cache:
        score_all(tmp_path / "a.jsonl", many, judges_of(tiny_clip), cache=cache)
        encoded = count_calls(monkeypatch, Judge, "encode")
        score_all(tmp_path / "b.jsonl", many, judges_of(tiny_clip, scores=["hessel"]), "a dog", cache=cache)
        assert encoded == []
    monkeypatch.undo()
    score_all(tmp_path / "c.jsonl", many, judges_of(tiny_clip, scores=["hessel"]), "a dog")
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "c.jsonl").read_bytes()


def test_scores_in_bfloat16_are_other_scores_nearby(tiny_clip, many, tmp_path):
    from clip_guidance.clip import CLIP

    score_all(tmp_path / "wide.jsonl", many, judges_of(tiny_clip, scores=["cosine"]))
    narrow = CLIP.from_pretrained(tiny_clip.name_or_path)
    score_all(tmp_path / "narrow.jsonl", many, judges_of(narrow, scores=["cosine"], dtype=torch.bfloat16))
    (_, record), *_ = read_scores(tmp_path / "narrow.jsonl")
    assert record["dtype"] == "bfloat16"
    wide, narrow = (by_definition(tmp_path / f"{name}.jsonl", "cosine") for name in ("wide", "narrow"))
    differences = [abs(wide[name] - narrow[name]) for name in wide]
    assert 0 < max(differences) < 0.05


def test_drafts_change_large_jpegs_a_little_and_say_so(tiny_clip, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    waves = np.sin(np.linspace(0, 9, 640))[:, None, None] + np.cos(np.linspace(0, 7, 800))[None, :, None]
    Image.fromarray((waves * [50, 40, 30] + 128).astype(np.uint8)).save(folder / "large.jpg")
    Image.fromarray((waves[:60, :50] * [50, 40, 30] + 128).astype(np.uint8)).save(folder / "small.jpg")
    (folder / "torn.jpg").write_bytes((folder / "large.jpg").read_bytes()[:2000])
    score_all(tmp_path / "full.jsonl", folder, judges_of(tiny_clip, scores=["cosine"]))
    done = score_all(tmp_path / "draft.jsonl", folder, judges_of(tiny_clip, scores=["cosine"], draft=True), draft=True)
    full, draft = (by_definition(tmp_path / f"{name}.jsonl", "cosine") for name in ("full", "draft"))
    large, small = str(folder / "large.jpg"), str(folder / "small.jpg")
    assert full[small] == draft[small] and 0 < abs(full[large] - draft[large]) < 0.02
    assert [failure.image for block in done for failure in block.failures] == [str(folder / "torn.jpg")]
    assert {record["decode"] for _, record in read_scores(tmp_path / "draft.jsonl")} == {"draft"}


def test_a_score_that_is_not_finite_fails_by_name(tiny_clip, many, tmp_path, monkeypatch):
    encode = Judge.encode

    def spoilt(self, pixel_values):
        embeds = encode(self, pixel_values)
        embeds[0] = torch.nan
        return embeds

    monkeypatch.setattr(Judge, "encode", spoilt)
    with EmbedCache(tmp_path / "cache") as cache:
        done = score_all(tmp_path / "scores.csv", many, judges_of(tiny_clip), batch_size=21, cache=cache)
        (first, _) = (failure for block in done for failure in block.failures)
        assert first == Failure(0, str(many / "00.png"), "the score torchmetrics of it is not finite")
        assert str(many / "00.png") not in by_definition(tmp_path / "scores.csv", "torchmetrics")
        stored = cache._run(judges_of(tiny_clip)[0].key, lambda file: file.execute("SELECT count(*) FROM embeds"))
        assert stored.fetchone() == (19,)


def test_two_runs_do_not_write_one_output(tmp_path):
    first, second = Job(tmp_path / "scores.csv", Processes()), Job(tmp_path / "scores.csv", Processes())
    with first.locked(), pytest.raises(ScoresError, match=r"scores.csv: another run is writing it"), second.locked():
        pass
    with second.locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_threads_keep_the_order_and_a_bounded_window():
    taken, running, peak = 0, threading.Semaphore(0), []

    def source():
        for number in range(50):
            peak.append(number - taken)
            yield number

    for number in ordered_map(lambda number: running.release() or number, source(), threads=3, ahead=5):
        assert number == taken
        taken += 1
    assert taken == 50 and max(peak) <= 6


def test_an_error_of_the_work_is_not_lost():
    def broken(number):
        raise RuntimeError(f"item {number}")

    with pytest.raises(RuntimeError, match="item 0"):
        list(ordered_map(broken, range(10), 2, 3))


@pytest.mark.slow
def test_killed_at_random_and_resumed_it_gives_the_file_of_an_undisturbed_run(root):
    options = ["--kills", "5", "--images", "120", "--json", "--format", "csv"]
    done = subprocess.run(
        [sys.executable, str(root / "benchmarks" / "scoring_kills.py"), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == 5 and found["runs finished and compared"] >= 1 and found["faults"] == []
