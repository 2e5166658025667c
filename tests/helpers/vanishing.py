"""Two machines with a cable between them, which is cut: two network namespaces of Linux, each with a launcher.

    unshare --map-root-user --net python tests/helpers/vanishing.py CUT SECONDS LAUNCHER WORDS...

runs ``clip-guidance`` on both by a launcher of :mod:`helpers.nodes`, and prints what became of each as JSON. Machine
CUT loses its network for SECONDS after two blocks of images were scored there, or for ever where they are 0. No
connection is closed, as when its power fails.
"""

import json
import os
import subprocess
import sys
import time

from clip_guidance.cli.main import run
from clip_guidance.metrics.job import keepalive
from clip_guidance.metrics.job.store import ScoreStore
from helpers import nodes

ADDRESSES = ("10.99.0.1", "10.99.0.2")  # in namespaces that nobody else sees
LOST_AFTER = 6  # seconds
BLOCKS = 2
LONGEST = 120  # seconds until both must have ended, most of which they take to start


def _ip(*words: str, inside: tuple[str, ...] = ()) -> None:
    subprocess.run([*inside, "ip", *words], check=True)


def _connect(inside: tuple[str, ...], process: int) -> None:
    """Lay a cable to the namespace of a process."""
    _ip("link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(process))
    for address, place in zip(ADDRESSES, ((), inside), strict=True):
        _ip("link", "set", "lo", "up", inside=place)
        _ip("address", "add", f"{address}/24", "dev", "cable", inside=place)
        _ip("link", "set", "cable", "up", inside=place)


def both(cut: str, seconds: str, launcher: str, words: list[str]) -> list[dict]:
    """Start both machines, and wait for them."""
    with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as second:
        second.stdin.write(b"\n")
        second.stdin.flush()
        second.stdout.readline()  # its namespace is there
        inside = ("nsenter", "--net", "--target", str(second.pid))
        _connect(inside, second.pid)
        command = [word.replace("localhost", ADDRESSES[0]) for word in getattr(nodes, launcher)]
        work = [__file__, cut, seconds, *words]
        started = [
            subprocess.Popen(
                [*place, sys.executable, *(word.format(rank=rank, port=29500) for word in command), *work],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "GLOO_SOCKET_IFNAME": "cable", "VANISHING": "1"},
            )
            for rank, place in enumerate(((), inside))
        ]
        told = [_said(process) for process in started]
        second.stdin.close()
    return [{"code": process.returncode, "said": said} for process, said in zip(started, told, strict=True)]


def _said(process: subprocess.Popen[str]) -> str:
    """Wait for a launcher; one that waits on is ended, and its exit code says so."""
    try:
        return process.communicate(timeout=LONGEST)[1]
    except subprocess.TimeoutExpired:
        process.terminate()
        return process.communicate()[1]


def _cut(seconds: float) -> None:
    """Let this machine lose its network; it works on, and nobody knows."""
    _ip("link", "set", "cable", "down")
    if seconds:
        time.sleep(seconds)
        _ip("link", "set", "cable", "up")


if __name__ == "__main__":
    if "VANISHING" not in os.environ:
        print(json.dumps(both(*sys.argv[1:4], sys.argv[4:])))
    else:
        keepalive.LOST_AFTER = LOST_AFTER
        if os.environ["RANK"] == sys.argv[1]:
            ScoreStore.put = nodes.then(ScoreStore.put, BLOCKS, lambda: _cut(float(sys.argv[2])))
        run(sys.argv[3:])
