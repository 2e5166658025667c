"""Slow tests wait for ``--full``, and a test that is not marked slow may use only so many CPU seconds."""

from pathlib import Path

import pytest
from helpers import slow

pytest_plugins = ["pytester"]

BUSY = """
import os, subprocess, sys, time
import pytest

BURN = "import time\\nwhile time.process_time() < 0.3: pass"

def burn():
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
"""


@pytest.fixture
def run(pytester):
    """Run pytest with the plugin under test on a file that holds the given tests."""
    pytester.makeconftest(Path(slow.__file__).read_text(encoding="utf-8"))

    def run(tests, *options):
        pytester.makepyfile(test_it=BUSY + tests)
        return pytester.runpytest(*options)

    return run


TWO = """
@pytest.mark.slow
def test_slow(): pass
def test_other(): pass
"""


@pytest.mark.parametrize(
    "options",
    [pytest.param(["-p", "no:xdist"], id="one process"), pytest.param(["-n", "1"], id="xdist", marks=pytest.mark.slow)],
)
def test_slow_tests_wait_for_full(run, options):
    done = run(TWO, *options)
    done.assert_outcomes(passed=1, deselected=0 if "-n" in options else 1)  # xdist itself does not count them
    done.stdout.fnmatch_lines("1 slow tests were left out: pytest --full runs them too")
    done = run(TWO, "--full", *options)
    done.assert_outcomes(passed=2)
    done.stdout.no_fnmatch_line("*left out*")


def test_the_default_run_and_the_slow_tests_are_all_tests(run):
    run(TWO, "-p", "no:xdist", "--full", "-m", "slow").assert_outcomes(passed=1, deselected=1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def test_it(): burn()", "the test used 0.* CPU seconds, *may use 0.1: make it smaller, or mark it*"),
        pytest.param(
            "def test_it(): subprocess.run([sys.executable, '-c', BURN])",
            "the test used *, *may use 0.1: *",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "@pytest.fixture\ndef data(): burn()\ndef test_it(data): pass",
            "its fixtures used *, *may use 0.2: *",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["itself", "a child", "a fixture"],
)
def test_a_test_over_the_limit_fails_unless_it_is_marked(run, body, message):
    options = ("-p", "no:xdist", "--cpu-limit", "0.1", "--full")
    done = run(body, *options)
    assert done.ret == 1
    done.stdout.fnmatch_lines(message)
    run("pytestmark = pytest.mark.slow\n" + body, *options).assert_outcomes(passed=1)


def test_waiting_costs_nothing_and_a_failure_stays_what_it_was(run):
    options = ("-p", "no:xdist", "--cpu-limit", "0.1")
    run("def test_it(): time.sleep(0.4)", *options).assert_outcomes(passed=1)
    done = run("def test_it():\n    burn()\n    assert 1 == 2", *options)
    done.stdout.fnmatch_lines("*assert 1 == 2")
    done.stdout.no_fnmatch_line("*CPU seconds*")
