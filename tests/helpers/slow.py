"""What keeps the default run short: tests marked ``slow`` wait for ``--full``; any other may use five CPU seconds.

CPU seconds are those of this process and of the children that it waited for, all threads together. Unlike seconds on
the clock, they hardly depend on what else the machine does.
"""

import os
from collections.abc import Generator

import pytest

_LEFT_OUT = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the tests marked slow too")
    parser.addoption(
        "--cpu-limit",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="CPU seconds that a test may use unless it is marked slow; its fixtures may use twice as many (default 5)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: left out unless --full is given")
    config.stash[_LEFT_OUT] = 0


# ---------------------------------------------------------------- slow tests wait for --full


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    items[:] = [item for item in items if not item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    config.stash[_LEFT_OUT] = len(slow)
    if hasattr(config, "workeroutput"):  # a worker of xdist collects, but only the main process prints
        config.workeroutput["left_out"] = len(slow)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """Take over what a worker of xdist left out; each of them collects all tests."""
    config = node.config
    config.stash[_LEFT_OUT] = max(config.stash[_LEFT_OUT], getattr(node, "workeroutput", {}).get("left_out", 0))


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if left_out := config.stash[_LEFT_OUT]:
        terminalreporter.write_line(f"{left_out} slow tests were left out: pytest --full runs them too")


# ---------------------------------------------------------------- any other may use five CPU seconds


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    # A fixture may serve a whole file; the first of its tests waits for it.
    yield from _limited(item, "its fixtures", 2 * item.config.getoption("--cpu-limit"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    yield from _limited(item, "the test", item.config.getoption("--cpu-limit"))


def _limited(item: pytest.Item, what: str, limit: float) -> Generator[None, None, None]:
    """Run one phase of a test and fail it if it used more CPU seconds than an unmarked test may."""
    before = _cpu_seconds()
    yield
    used = _cpu_seconds() - before
    if used > limit and not item.get_closest_marker("slow"):
        pytest.fail(
            f"{what} used {used:.1f} CPU seconds, where a test that is not marked slow may use {limit:g}: "
            "make it smaller, or mark it with @pytest.mark.slow, so that only pytest --full runs it",
            pytrace=False,
        )


def _cpu_seconds() -> float:
    """User and system time of this process and of the children that it waited for."""
    return sum(os.times()[:4])
