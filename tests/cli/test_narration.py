"""Progress in a log, the last line of a run, and what a defect leaves on the terminal."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_guidance.cli._narration import LoggedProgress, narrate_end, narrated_logs, progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def told(capsys, total, seconds, count, each=1):
    """The lines of a task whose every advance takes so long."""
    clock = Clock()
    with LoggedProgress(clock) as bar:
        task = bar.add_task("images", total=total)
        for _ in range(count):
            clock.now += seconds
            bar.advance(task, each)
    return capsys.readouterr().err.splitlines()


def test_a_line_per_5_percent_of_a_long_task(capsys):
    lines = told(capsys, total=5000, seconds=0.1, count=5000)
    assert len(lines) == 19  # the last line of the run says that all are done
    assert lines[0] == "progress: 250 of 5,000 images (5%, 0:07:55 left)"
    assert lines[-1] == "progress: 4,750 of 5,000 images (95%, 0:00:25 left)"


def test_a_line_per_30_seconds_of_a_slow_task(capsys):
    lines = told(capsys, total=5000, seconds=10, count=30)
    assert [line.split()[1] for line in lines] == [str(3 * n) for n in range(1, 11)]
    assert told(capsys, total=None, seconds=10, count=7, each=1000) == [
        "progress: 3,000 images", "progress: 6,000 images",
    ]  # fmt: skip


def test_a_quick_task_and_other_processes_leave_no_line(capsys, monkeypatch):
    assert told(capsys, total=100, seconds=0.015, count=100) == []
    monkeypatch.setenv("RANK", "1")
    assert told(capsys, total=100, seconds=10, count=100) == []


@pytest.mark.slow
@given(st.integers(1, 10**6), st.integers(1, 1000), st.floats(0.01, 100))
def test_never_more_lines_than_promised(total, each, seconds):
    clock, lines = Clock(), []
    bar = LoggedProgress(clock)
    bar._tell = lambda: lines.append(clock.now)
    bar.add_task("images", total=total)
    steps = min(200, total // each)
    for _ in range(steps):
        clock.now += seconds
        bar.advance(0, each)
    assert len(lines) <= 20 + steps * seconds / 30
    gaps = [b - a for a, b in zip([0.0, *lines], [*lines, clock.now], strict=True)]
    assert max(gaps, default=0) < 30 + seconds or total <= each * steps


def test_where_stderr_is_no_terminal_progress_goes_by_lines():
    assert isinstance(progress(), LoggedProgress)


@pytest.mark.parametrize(
    ("numbers", "line"),
    [((4997, 3, 5000), "4,997 of 5,000 done, 3 failed"), ((2, 0, 2), "2 of 2 done"), ((1, 0, 9), "1 of 9 done")],
)
def test_the_last_line(capsys, numbers, line):
    narrate_end(*numbers)
    assert capsys.readouterr().err == line + "\n"


def test_a_defect_is_told_with_its_traceback_and_obeys_nothing(capsys):
    with narrated_logs():
        try:
            raise RuntimeError("\x1b[2Jno [red]memory")
        except RuntimeError:
            logging.getLogger("clip_guidance.ui.events").exception("a run of the page failed")
    first, *trace = capsys.readouterr().err.splitlines()
    assert first == "error: a run of the page failed" and trace[0] == "Traceback (most recent call last):"
    assert Path(__file__).name in trace[1] and trace[-1] == r"RuntimeError: \x1b[2Jno [red]memory"
