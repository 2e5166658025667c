"""Processes that share work: who is waited for, and what is said of those that end or vanish."""

import os
import signal
import socket
import threading
import time

import pytest
from helpers.processes import spawned

from clip_guidance.metrics.job import keepalive, processes
from clip_guidance.metrics.job.processes import LostProcessError, Processes, find_processes

PAIR = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:5] "
CLOSED, RESET = PAIR + "Connection closed by peer [10.0.0.2]:5.", PAIR + "Read error [10.0.0.2]:5: Connection reset by"
SILENT = PAIR + "Read error [10.0.0.2]:5: Connection timed out. This is typically caused by"
NO_ROUTE, UNREACHABLE = SILENT.replace("Connection timed out", "No route to host"), "Network is unreachable"


@pytest.mark.parametrize(
    ("reasons", "told"),
    [
        ({1: CLOSED}, "process 1 of 4 ended before its work was done"),
        ({3: RESET, 1: ""}, "process 1, 3 of 4 ended before its work was done"),
        ({2: SILENT}, "process 2 of 4 vanished before its work was done, without an answer for 600 s"),
        (
            {2: NO_ROUTE, 3: UNREACHABLE},
            "process 2, 3 of 4 vanished before its work was done, without an answer for 600 s",
        ),
        (
            {0: CLOSED, 2: SILENT},
            "process 2 of 4 vanished before its work was done, without an answer for 600 s; "
            "process 0 of 4 ended before its work was done",
        ),
        ({}, "another process of 4 ended before its work was done"),
    ],
)
def test_those_that_ended_and_those_that_vanished_are_named(reasons, told):
    assert processes._told(reasons, 4) == told


def test_a_process_alone_waits_for_none():
    alone = Processes()
    alone.wait()
    assert (alone.rank, alone.count, alone.gather("x")) == (0, 1, ["x"])


def launched(rank, size):
    """Find the processes as under a launcher."""
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({key: str(value) for key, value in environment.items()})
    return find_processes("cpu")


def ending_early(rank, size):
    """Wait for another process that ended before; the last one ends at once."""
    found = launched(rank, size)
    assert found.gather({"rank": rank}) == [{"rank": each} for each in range(size)]
    if rank == size - 1:
        return ""
    time.sleep(2)  # its connections are closed by then
    try:
        found.gather("") if rank else found.wait()
    except LostProcessError as error:
        time.sleep(2)  # until all have looked
        return str(error)


@pytest.mark.slow
def test_all_name_the_process_that_ended_before_they_waited():
    told = "process 2 of 3 ended before its work was done"
    assert spawned(3, ending_early) == [told, told, ""]


def stopped(rank, size):
    """Stop the second process for four times as long as a machine may be silent; say how long the wait was."""
    keepalive.LOST_AFTER = 2
    found, started = launched(rank, size), time.monotonic()
    asking = [socket.socket(fileno=os.dup(descriptor)) for descriptor in keepalive._sockets().values()]
    asked = sum(one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for one in asking)
    for one in asking:
        one.close()
    _, second = found.gather(os.getpid())
    if rank == 0:
        os.kill(second, signal.SIGSTOP)
        threading.Timer(8, os.kill, (second, signal.SIGCONT)).start()
    else:
        time.sleep(0.5)
    found.wait()
    found.wait()
    return asked, time.monotonic() - started


@pytest.mark.slow
def test_a_process_that_is_stopped_or_busy_for_long_is_waited_for():
    """A stopped one does less than any busy one: not a thread of it runs."""
    for asked, seconds in spawned(2, stopped):
        assert asked and seconds > 7
