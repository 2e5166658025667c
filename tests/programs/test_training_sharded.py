"""FSDP2 as accelerate sets it up, on two processes: the run is that of one process, and goes on after a kill.

accelerate shards on accelerators alone and falls back to DDP on the CPU without a word, which training refuses. Told
that it shards, its own code does so on the CPU as well: that is what runs here.
"""

import contextlib
import os
import re
import subprocess
import sys
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from helpers.factories import TEXTS, make_clip
from helpers.processes import spawned
from torch.distributed.tensor import DTensor

from clip_guidance.training.checkpoints import full_state_dict
from clip_guidance.training.evaluation import evaluating
from clip_guidance.training.objective import ContrastiveObjective, caption_groups
from clip_guidance.training.trainer import Plan, fit

CAPTIONS = (TEXTS * 3)[:8]
STEPS = 4


class Killed(Exception):
    pass


def run(accelerator, folder, size, rank, kill_after=None):
    """The weights after ``STEPS`` steps in float64, an embedding asked for on the way, and what was sharded."""
    clip = make_clip().double().train()
    objective = ContrastiveObjective(clip, chunk_size=2).double()
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ids = torch.randint(0, 200, (8, 12), generator=torch.Generator().manual_seed(2))
    ids[:, 0], ids[:, -1] = clip.tokenizer.bos_token_id, clip.tokenizer.eos_token_id
    rows = slice(rank * 8 // size, (rank + 1) * 8 // size)
    inputs = images[rows], ids[rows], caption_groups(CAPTIONS)[rows]
    embeds = []

    def loss(model, step):
        return {"loss": model(*inputs, seed=step)}

    def after_step(done):
        clip.clamp_logit_scale()
        with evaluating(objective) as model, torch.no_grad():
            embeds.append(model.image_embeds(images).cpu())
        if done == kill_after:
            raise Killed
        return {}

    plan = Plan(STEPS, 0.01, 1, 0.1, 1.0, seed=3, log_every=1, save_every=1)
    with contextlib.suppress(Killed):
        fit(accelerator, objective, loss, plan, folder, after_step=after_step)
    sharded = sum(isinstance(parameter, DTensor) for parameter in objective.parameters())
    return full_state_dict(clip), embeds, sharded


def on_each(folder, rank, size):
    """Killed after three steps, of which two were saved, and resumed; with each block a shard of its own."""
    address = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in address.items()})
    found = []
    for kill_after in (3, None):
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["EncoderLayer"],
        )
        accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
        accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
        assert accelerator.is_fsdp2 and accelerator.num_processes == size
        found.append(run(accelerator, folder, size, rank, kill_after))
        AcceleratorState._reset_state()
    return found


@pytest.mark.slow
def test_the_run_is_that_of_one_process(tmp_path):
    expected, embeds, _ = run(Accelerator(cpu=True), tmp_path / "one", 1, 0)
    for killed, (weights, resumed, sharded) in spawned(2, partial(on_each, tmp_path / "sharded")):
        assert sharded == len(list(make_clip().parameters())) and len(killed[1]) == 3 and len(resumed) == 2
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-6, atol=1e-9, msg=f"{name} differs")
        for found, known in zip([*killed[1][:2], *resumed], embeds, strict=True):
            torch.testing.assert_close(found, known, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_fsdp_that_accelerate_would_leave_out_without_a_word_is_refused(root, tmp_path):
    """Before anything is read: the data is not there."""
    options = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    program = [str(root / "training" / "train_clip.py"), "--data", "none.csv", "--output", str(tmp_path)]
    run = subprocess.run([*launch, *program], capture_output=True, text=True, env={**os.environ, **options})
    message = r"FSDP was asked for, and accelerate \S+ does not shard on the cpu: it would run as MULTI_CPU"
    assert run.returncode != 0
    assert re.search(message, run.stderr) and "ValueError" not in run.stderr  # a sentence, no traceback


@pytest.mark.slow
def test_bf16_trains_on_the_cpu(tmp_path):
    """Weights stay float32, and towers compute in bfloat16: the first loss is close and not the same."""
    losses = []
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        torch.manual_seed(0)
        objective = ContrastiveObjective(make_clip().train())
        images, ids = torch.rand(4, 3, 32, 32), torch.randint(0, 200, (4, 12))
        ids[:, -1] = objective.clip.tokenizer.eos_token_id
        seen = []

        def loss(model, step, images=images, ids=ids, seen=seen):
            seen.append(model(images, ids))
            return {"loss": seen[-1]}

        fit(accelerator, objective, loss, Plan(2, 0.01, 0, 0.0, 1.0, 3, 1, 2), tmp_path / precision)
        assert {parameter.dtype for parameter in objective.parameters()} == {torch.float32}
        losses.append(seen[0].item())
    AcceleratorState._reset_state(reset_partial_state=True)
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)
