"""Two machines that share the work, one of which dies: what was done is kept, and a second start ends as one would."""

import numpy as np
import pytest
from helpers.factories import save_tiny_clip
from helpers.nodes import ACCELERATE, on_two_nodes
from PIL import Image

from clip_guidance.metrics.job.store import ScoreStore

pytestmark = pytest.mark.slow
CLI = "clip_guidance.cli.main"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(12):
        Image.fromarray(np.full((32, 32, 3), 20 * i, np.uint8)).save(folder / f"{i:02}.png")
    return folder


def test_scores_of_two_nodes_survive_the_death_of_one(clip, images, tmp_path):
    words = ["score", images, "--prompt", "a cat", "--model", clip, "--batch-size", 1, "--device", "cpu", "--output"]
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert [node.returncode for node in on_two_nodes(CLI, [*words, whole], launcher=ACCELERATE)] == [0, 0]

    first, second = on_two_nodes(CLI, [*words, broken], dies_after=2)
    assert second.returncode == -9 and first.returncode == 1 and not broken.exists()
    assert "error: process 1 of 2 ended before its work was done; what was scored is kept beside" in first.stderr
    assert "Traceback" not in first.stderr.partition("error: process 1")[0]
    done = []
    for rank in (0, 1):
        with ScoreStore(tmp_path / f"broken.jsonl.partial-{rank}") as shard:
            done.append(shard._db.execute("SELECT count(*) FROM rows").fetchone()[0])
    assert done == [6, 2]  # all of the first one's share, and what the second acknowledged

    nodes = on_two_nodes(CLI, [*words, broken, "--resume"])
    assert [node.returncode for node in nodes] == [0, 0], nodes[0].stderr
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jsonl", "whole.jsonl"]
