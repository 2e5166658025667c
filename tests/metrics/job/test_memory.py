"""Memory that does not grow with the number of images, and the benchmark programs."""

import gc
import json
from collections import Counter

import pytest
from helpers.scoring_helpers import judges_of

from clip_guidance.metrics.job.items import ScoreItem
from clip_guidance.metrics.job.prepare import PreparedItem
from clip_guidance.metrics.job.processes import Processes
from clip_guidance.metrics.job.run import Job, Options, score_items
from clip_guidance.metrics.job.store import ScoreRow
from clip_guidance.training.settings import parse_settings


@pytest.mark.slow
def test_no_more_than_a_window_of_images_is_held(tiny_clip, many, tmp_path):
    judges, options = judges_of(tiny_clip), Options(batch_size=4, threads=2)
    work = Job(tmp_path / "scores.jsonl", Processes())
    work.begin(judges)
    files = [str(path) for path in sorted(many.iterdir())]
    items = (ScoreItem(files[i % 8], files[i % 8], f"prompt {'ab'[i % 2]}", position=i) for i in range(80))
    window = options.threads + 2 * options.batch_size
    before = Counter(map(type, gc.get_objects()))  # other tests may have left some
    for number, done in enumerate(score_items(items, judges, work, options)):
        assert done.items == 4
        if number % 10:  # counting all objects of a process takes long
            continue
        held = Counter(map(type, gc.get_objects())) - before
        assert held[PreparedItem] <= window + 2 * options.batch_size + 1
        assert held[ScoreRow] <= 2 * options.batch_size


@pytest.fixture
def program(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import scoring_throughput

    return scoring_throughput


@pytest.mark.slow
def test_the_throughput_benchmark_gives_equal_scores_and_consistent_numbers(program, capsys, tmp_path):
    words = ["--model", "tiny", "--images", "6", "--side", "64", "--batch_size", "4", "--repeats", "2"]
    output = tmp_path / "table.md"
    program.main(parse_settings(program.Settings, [*words, "--json", "True", "--output", str(output)]))
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["ours"]["difference"] < 1e-4  # of 100: float rounding
    assert 0 < rows["ours, --dtype bfloat16"]["difference"] < 2
    assert rows["transformers"]["ratio"] == rows["transformers"]["cpu_ratio"] == 1
    assert all(row["rate"] > 0 and row["cpu_ms"] > 0 for row in rows.values() if "note" not in row)
    assert output.read_text().count("\n| ") == 2 + len(rows)
