"""A first result soon: what the benchmark of it says hangs together, and what makes it quick does no harm later."""

import json
import subprocess
import sys

import pytest
from helpers.factories import save_tiny_clip

from clip_guidance.training.settings import parse_settings


@pytest.fixture
def program(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import cold_start

    return cold_start


@pytest.mark.slow
def test_the_benchmark_times_the_command_and_its_parts(program, tmp_path, capsys):
    model, output = save_tiny_clip(tmp_path / "clip"), tmp_path / "table.md"
    words = ["--runs", "1", "--model", str(model), "--json", "True", "--output", str(output)]
    program.main(parse_settings(program.Settings, words))
    rows = {row["name"]: row["median"] for row in json.loads(capsys.readouterr().out)}
    assert list(rows)[:3] == ["until the result", "until it has ended", "CPU of all"] and len(rows) == 10
    assert 0 < rows["until the result"] <= rows["until it has ended"] and min(rows.values()) >= 0
    assert output.read_text().count("\n| ") == 2 + len(rows)


def test_a_command_that_fails_is_told_with_what_it_says(program):
    with pytest.raises(RuntimeError, match=r"ended with 3: no such luck"):
        program.time_run(["-c", "import sys; print('no such luck', file=sys.stderr); sys.exit(3)"], 1)


def test_files_are_dropped_from_the_page_cache_and_stay_as_they_are(program, tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    files = {tmp_path / "a.py": b"x = 1", tmp_path / "deep" / "b.so": b"0" * 5000}
    for path, content in files.items():
        path.write_bytes(content)
    asked = []
    monkeypatch.setattr(program.os, "posix_fadvise", lambda file, *advice: asked.append(advice))
    assert program.drop_from_page_cache({tmp_path, tmp_path / "gone"}) == 5005
    assert asked == [(0, 0, program.os.POSIX_FADV_DONTNEED)] * 2  # the whole of each
    assert all(path.read_bytes() == content for path, content in files.items())


@pytest.mark.slow
def test_after_the_first_model_garbage_is_collected_again():
    code = """
import gc
from clip_guidance.cli import _common as common
try:
    common.load_clip("no/such/model", "cpu")
except ValueError:
    assert gc.isenabled() and gc.get_freeze_count() > 100_000  # what was imported is not looked at any more
    before = gc.get_freeze_count()
    common.load_clip("emoji", "cpu")
    assert gc.isenabled() and gc.get_freeze_count() <= before  # once a process: it only dwindles
else:
    raise AssertionError("a model that is not there was loaded")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
