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


@pytest.mark.parametrize(("cut", "launcher"), [(1, "TORCHRUN"), (0, "ACCELERATE")])
def test_the_machine_that_vanished_is_named_and_all_programs_end(need_namespaces, tmp_path, cut, launcher):
    images, output = tmp_path / "images", tmp_path / "scores.jsonl"
    images.mkdir()
    for i in range(12):
        Image.fromarray(np.full((32, 32, 3), 20 * i, np.uint8)).save(images / f"{i:02}.png")
    words = ["score", images, "--prompt", "a cat", "--model", save_tiny_clip(tmp_path / "clip"), "--batch-size", 1]
    words += ["--device", "cpu", "--output", output]
    tests = Path(vanishing.__file__).parents[1]
    paths = [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*ISOLATED, sys.executable, vanishing.__file__, str(cut), launcher, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert done.returncode == 0, done.stderr
    machines = json.loads(done.stdout)
    assert [machine["code"] for machine in machines] == [1, 1], machines
    left = machines[1 - cut]["said"]
    told = f"error: process {cut} of 2 vanished before its work was done, without an answer for 4 s; what was scored"
    assert told in left and "Traceback" not in left.partition(told)[0], left
    assert f"error: process {1 - cut} of 2 vanished" in machines[cut]["said"], machines[cut]["said"]
    for rank in (0, 1):  # both worked on, since neither could know
        with ScoreStore(tmp_path / f"scores.jsonl.partial-{rank}") as shard:
            assert shard._db.execute("SELECT count(*) FROM rows").fetchone() == (6,)
    assert not output.exists()
