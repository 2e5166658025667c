"""Two machines that share the work, one of which dies: what was done is kept, and a second start ends as one would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.factories import save_tiny_clip
from helpers.index_helpers import free_port, need_milvus, start_server
from helpers.nodes import ACCELERATE, on_two_nodes
from helpers.tables import write_table
from PIL import Image

from clip_guidance.cli.main import run
from clip_guidance.clip import CLIP
from clip_guidance.index import ImageIndex
from clip_guidance.metrics.job.store import ScoreStore

pytestmark = pytest.mark.slow
CLI = "clip_guidance.cli.main"


@pytest.fixture
def slurm(root, tmp_path, monkeypatch):
    """Submits the arguments to a SLURM of two nodes, which are this machine."""
    commands = tmp_path / "slurm"
    commands.mkdir()
    (commands / "scontrol").write_text("#!/bin/sh\necho localhost\n")
    each = 'for node in 0 1; do SLURM_NODEID=$node "$@" & started="$started $!"; done'
    wait = "for process in $started; do wait $process || exit 1; done"
    (commands / "srun").write_text(f"#!/bin/sh\nshift\n{each}\n{wait}\n")
    for command in commands.iterdir():
        command.chmod(0o755)
    paths = [commands, Path(sys.executable).parent, os.environ["PATH"]]
    job = {"SLURM_JOB_ID": os.getpid(), "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_NNODES": 2, "OMP_NUM_THREADS": 1}
    for name, value in {**job, "PATH": os.pathsep.join(map(str, paths))}.items():
        monkeypatch.setenv(name, str(value))
    script = root / "examples" / "cluster" / "torchrun.sbatch"

    def submit(*words):
        return subprocess.run(["bash", script, *map(str, words)], capture_output=True, text=True, cwd=root)

    return submit


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(12):
        Image.fromarray(np.full((32, 32, 3), 20 * i, np.uint8)).save(folder / f"{i:02}.png")
    return folder


def test_scores_of_two_nodes_survive_the_death_of_one(clip, images, slurm, tmp_path):
    words = ["score", images, "--prompt", "a cat", "--model", clip, "--batch-size", 1, "--device", "cpu", "--output"]
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    with pytest.raises(SystemExit, match="0"):
        run([str(word) for word in (*words, whole)])  # alone

    first, second = on_two_nodes(CLI, [*words, broken], dies_after=2)
    assert second.returncode == -9 and first.returncode == 1 and not broken.exists()
    assert "error: process 1 of 2 ended before its work was done; what was scored is kept beside" in first.stderr
    assert "Traceback" not in first.stderr.partition("error: process 1")[0]
    kept = []
    for rank in (0, 1):
        with ScoreStore(tmp_path / f"broken.jsonl.partial-{rank}") as shard:
            kept.append(shard._db.execute("SELECT count(*) FROM rows").fetchone()[0])
    assert kept == [6, 2]  # all of the first one's share, and what the second acknowledged

    done = slurm("-m", CLI, *words, broken, "--resume")
    assert done.returncode == 0, done.stderr
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jsonl", "slurm", "whole.jsonl"]


def test_training_on_two_nodes_goes_on_after_the_death_of_one(root, tmp_path):
    data = write_table(tmp_path / "data.parquet", ["red apple", "cat", "dog", "bus", "tree", "house"], size=32)
    options = {"data": data, "batch_size": 2, "steps": 5, "save_every": 2, "log_every": 1, "warmup": 2}
    options |= {"image_size": 32, "image_width": 32, "image_layers": 1, "text_width": 32, "text_layers": 1}
    options |= {"vocab_size": 600, "context_length": 12}
    words = [f"--{name}={value}" for name, value in options.items()]
    program, whole, broken = str(root / "training" / "train_clip.py"), tmp_path / "whole", tmp_path / "broken"
    one = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", program, *words]
    done = subprocess.run([*one, "--output", str(whole)], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr

    first, second = on_two_nodes(program, [*words, "--output", broken], dies_after=3)
    assert second.returncode == -9 and first.returncode == 1
    lost = r"another of the 2 processes ended in step [34] of 5: what was learnt since the checkpoint of step 2 is lost"
    assert re.search(lost, first.stderr), first.stderr
    assert [path.name for path in (broken / "checkpoints").iterdir()] == ["step-2.safetensors"]

    nodes = on_two_nodes(program, [*words, "--output", broken], launcher=ACCELERATE)
    assert [node.returncode for node in nodes] == [0, 0], nodes[0].stderr
    for name in ("model.safetensors", "checkpoints/step-5.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


def test_two_machines_fill_one_index_in_a_milvus_server(clip, images, tmp_path, monkeypatch):
    """Both at once, each with its own half of the images, and a catalogue that they share."""
    need_milvus()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "shared"))
    port = free_port()
    server = start_server(tmp_path / "milvus", port)
    try:
        words = ["index", "--index", f"http://127.0.0.1:{port}", "--model", clip, "--batch-size", 2, "--device", "cpu"]
        paths = sorted(images.iterdir())
        started = [
            subprocess.Popen([sys.executable, "-m", CLI, *map(str, words), *half], stderr=subprocess.PIPE, text=True)
            for half in (paths[:6], paths[6:])
        ]
        assert [(process.communicate()[1], process.returncode) for process in started] == [("6 of 6 done\n", 0)] * 2
        with ImageIndex.open(words[2], CLIP.from_pretrained(clip)) as index:
            assert len(index) == index._store._size() == 12
            assert index.search(paths[7], k=1)[0].path == str(paths[7])
    finally:
        server.kill()
        server.wait()
