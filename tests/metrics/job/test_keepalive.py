"""Connections are asked whether the other machine is there: which ones, and how long it may be silent."""

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from clip_guidance.metrics.job import keepalive

pytestmark = pytest.mark.skipif(not keepalive._DESCRIPTORS.is_dir(), reason="sockets are found in /proc")


def settings(connection):
    """Whether a socket asks, first after how many seconds, then how often, and when it gives up."""
    names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)
    asks = connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    return bool(asks), *(connection.getsockopt(socket.IPPROTO_TCP, name) for name in names)


@pytest.fixture
def opened():
    with ExitStack() as stack:

        def open_socket(*options):
            return stack.enter_context(socket.socket(*options))

        yield open_socket


def test_the_connections_of_the_block_are_given_up_after_ten_minutes_and_others_are_left_alone(opened):
    before = opened()
    alone = settings(before)
    assert not alone[0]
    with keepalive.keepalive():
        server, client = opened(), opened(socket.AF_INET6)
        opened(socket.AF_INET, socket.SOCK_DGRAM), opened(socket.AF_UNIX)  # have no such options
    assert settings(server) == settings(client) == (True, 60, 60, 600_000)
    assert settings(before) == alone
    server.bind(("127.0.0.1", 0))
    server.listen()
    with socket.create_connection(server.getsockname()), server.accept()[0] as accepted:
        assert settings(accepted) == (True, 60, 60, 600_000)  # a listening socket hands them on


@pytest.mark.parametrize("blocking", [True, False])
def test_a_socket_keeps_its_mode_whatever_the_default_is(opened, blocking):
    socket.setdefaulttimeout(3.0)
    try:
        with keepalive.keepalive():
            connection = opened()
            connection.setblocking(blocking)
    finally:
        socket.setdefaulttimeout(None)
    assert os.get_blocking(connection.fileno()) is blocking and settings(connection)[0]


def test_a_kernel_that_refuses_is_told_of(opened, monkeypatch):
    monkeypatch.setattr(keepalive, "LOST_AFTER", 10**6)  # more than Linux takes
    told = "^a machine that vanishes will not be noticed: .*Invalid argument"
    with pytest.warns(UserWarning, match=told), keepalive.keepalive():
        connection = opened()
    assert not settings(connection)[0]


def test_other_systems_than_linux_have_no_list_of_sockets(opened, monkeypatch):
    monkeypatch.setattr(keepalive, "_DESCRIPTORS", Path("/gone/self/fd"))
    with keepalive.keepalive():
        connection = opened()
    assert not settings(connection)[0]
