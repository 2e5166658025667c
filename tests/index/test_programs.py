"""The benchmark programs of the index. The number of kills is that of CLIP_GUIDANCE_INDEX_KILLS, if it is set."""

import json
import os
import subprocess
import sys

import pytest
from helpers.index_helpers import need_milvus

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("CLIP_GUIDANCE_INDEX_KILLS", "5"))


def program(root, name: str, *options) -> subprocess.CompletedProcess:
    words = [sys.executable, root / "benchmarks" / f"{name}.py", *options]
    return subprocess.run([str(word) for word in words], cwd=root, capture_output=True, text=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the program forks")
@pytest.mark.parametrize("store", ["folder", "file", "server"])
def test_nothing_acknowledged_is_lost_by_a_kill(root, store):
    if store != "folder":
        need_milvus()
    done = program(root, "index_kills", "--store", store, "--kills", KILLS, "--seed", os.getpid(), "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert found["faults"] == [] and found["kills"] == KILLS == sum(found["killed while"].values())
    assert found["acknowledged changes"] > 0


def test_the_kills_would_find_a_loss(root, tmp_path):
    """With a store that forgets the last image of each batch, the same program reports losses."""
    (tmp_path / "forgetful.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(root / 'benchmarks')!r})\n"
        "import index_kills\n"
        "from clip_guidance.index.store import Store\n"
        "apply = Store.apply\n"
        "def forget(self, batch):\n"
        "    batch.put, batch.embeds = batch.put[:-1], batch.embeds[:-1]\n"
        "    return apply(self, batch) if batch else []\n"
        "Store.apply = forget\n"
        "index_kills.main(index_kills.Settings(kills=2, max_seconds_to_kill=1))\n"
    )
    done = subprocess.run([sys.executable, tmp_path / "forgetful.py"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and "lost ['" in done.stdout, done.stderr


def test_search_beside_faiss(root):
    done = program(root, "search", "--count", 3000, "--dim", 16, "--queries", 5, "--repeats", 2, "--json")
    assert done.returncode == 0, done.stderr
    ours, *theirs = json.loads(done.stdout)
    assert ours["engine"] == "ours (float32)" and all(ours[key] > 0 for key in ("one_ms", "batch_ms", "filter_ms"))
    for row in theirs:  # where faiss is installed
        assert row["same"] == row["same_filtered"] == 1.0
