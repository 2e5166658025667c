"""A machine loses its network without closing a connection: the others end, and say which one it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import vanishing
from helpers.factories import save_tiny_clip
from PIL import Image

from clip_guidance.metrics.job.store import ScoreStore

pytestmark = pytest.mark.slow
ISOLATED = ["unshare", "--map-root-user", "--net"]


@pytest.fixture
def need_namespaces():
    try:
        subprocess.run([*ISOLATED, "ip", "link", "add", "cable", "type", "veth"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this system grants no network namespaces: {error}")


@pytest.fixture
def score(need_namespaces, tmp_path):
    """Scores twelve images on two machines, and says what became of each, and how many scores each one made."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(12):
        Image.fromarray(np.full((32, 32, 3), 20 * i, np.uint8)).save(images / f"{i:02}.png")
    words = ["score", images, "--prompt", "a cat", "--model", save_tiny_clip(tmp_path / "clip"), "--batch-size", 1]
    words += ["--device", "cpu", "--output", tmp_path / "scores.jsonl"]
    tests = Path(vanishing.__file__).parents[1]
    paths = [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    def run(cut, seconds, launcher):
        command = [*ISOLATED, sys.executable, vanishing.__file__, cut, seconds, launcher, *words]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize(("cut", "launcher"), [(1, "TORCHRUN"), (0, "ACCELERATE")])
def test_the_machine_that_vanished_is_named_and_all_programs_end(score, tmp_path, cut, launcher):
    machines = score(cut, 0, launcher)
    assert [machine["code"] for machine in machines] == [1, 1], machines
    left = machines[1 - cut]["said"]
    told = f"error: process {cut} of 2 vanished before its work was done, without an answer for 6 s; what was scored"
    assert told in left and "Traceback" not in left.partition(told)[0], left
    assert f"error: process {1 - cut} of 2 vanished" in machines[cut]["said"], machines[cut]["said"]
    for rank in (0, 1):  # both worked on, since neither could know
        with ScoreStore(tmp_path / f"scores.jsonl.partial-{rank}") as shard:
            assert shard._db.execute("SELECT count(*) FROM rows").fetchone() == (6,)
    assert not (tmp_path / "scores.jsonl").exists()


def test_a_network_that_comes_back_in_time_does_no_harm(score, tmp_path):
    machines = score(1, 2, "TORCHRUN")
    assert [machine["code"] for machine in machines] == [0, 0], machines
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 12
