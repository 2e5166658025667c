"""Training in float16: the loss scale, steps that are skipped, and a resume that knows both."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, GradScalerKwargs
from helpers.factories import PAIRS, make_clip
from helpers.processes import spawned
from helpers.tables import write_table
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from clip_guidance.training.checkpoints import Checkpoints
from clip_guidance.training.ema import make_ema_model
from clip_guidance.training.launch import check_launch
from clip_guidance.training.log import read_log
from clip_guidance.training.loss_scale import MIN_SCALE
from clip_guidance.training.objective import ContrastiveObjective
from clip_guidance.training.optimizer import learning_rate
from clip_guidance.training.trainer import NonFiniteLossError, Plan, fit

SCALE = 2.0**10
STEPS = 8


class Killed(Exception):
    pass


@dataclass
class Taken:
    """A step that the optimizer took: its number, the norm of its gradients and its learning rate."""

    step: int
    norm: float
    rate: float


@pytest.fixture(autouse=True)
def no_launch_left_over():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@contextlib.contextmanager
def watched(look):
    """Calls ``look`` with every optimizer that is about to step."""
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: look(optimizer))
    try:
        yield
    finally:
        handle.remove()


def make_accelerator(precision="fp16", growth_interval=3, init_scale=SCALE):
    scaler = GradScalerKwargs(init_scale=init_scale, growth_interval=growth_interval)
    return Accelerator(cpu=True, mixed_precision=precision, kwargs_handlers=[scaler])


def run(folder, accelerator=None, overflow_at=(), nan_at=None, kill_after=None, max_norm=1.0, **options):
    """Trains a small map; in some steps the gradient overflows float16, and the loss does not.

    Returns the model, its average after each step, and the steps that were taken.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    ema_model = make_ema_model(model, 0.9)
    begun, taken, averages = [], [], []

    def loss(model, step):
        begun.append(step)
        factor = 1e6 if step in overflow_at else float("nan") if step == nan_at else 1.0
        return {"loss": (model(torch.randn(16, 4)) - 1).square().mean() * factor}

    def after_step(done):
        averages.append([parameter.detach().clone() for parameter in ema_model.parameters()])
        if done == kill_after:
            raise Killed
        return {}

    def look(optimizer):
        norm = nn.utils.get_total_norm([p.grad for group in optimizer.param_groups for p in group["params"]])
        taken.append(Taken(begun[-1], norm.item(), optimizer.param_groups[0]["lr"]))

    plan = Plan(STEPS, 0.1, 2, 0.01, max_norm, seed=3, log_every=1, save_every=3)
    with contextlib.suppress(Killed), watched(look):
        options |= {"ema_model": ema_model, "after_step": after_step}
        fit(accelerator or make_accelerator(), model, loss, plan, folder, **options)
    return model, averages, taken


def rows(folder):
    return [{name: v for name, v in row.items() if name != "seconds"} for row in read_log(folder / "log.jsonl")]


def gradients(folder, precision, towers):
    """Of the objective in two chunks as the optimizer gets them, and their norm in the log."""
    AcceleratorState._reset_state(reset_partial_state=True)
    objective = ContrastiveObjective(make_clip(*towers).train(), chunk_size=2, freeze_batch_norm=True)
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(4, 3, 32, 32, generator=generator)
    ids = torch.randint(0, 200, (4, 12), generator=generator)
    ids[:, -1] = objective.clip.tokenizer.eos_token_id
    found = {}

    def look(optimizer):
        found.update({name: parameter.grad.clone() for name, parameter in objective.named_parameters()})

    def loss(model, step):
        return {"loss": model(images, ids, seed=step)}

    with watched(look):
        fit(make_accelerator(precision), objective, loss, Plan(1, 0.01, 0, 0.0, 1e9, 3, 1, 1), folder)
    assert {parameter.dtype for parameter in objective.parameters()} == {torch.float32}
    return found, read_log(folder / "log.jsonl")[0]["grad_norm"]


@pytest.mark.slow
@pytest.mark.parametrize("towers", PAIRS, ids="-".join)
def test_unscaled_gradients_are_those_of_float32(towers, tmp_path):
    """To float16's precision, and not to more: every operator of the towers computes in it."""
    expected, norm = gradients(tmp_path / "float32", "no", towers)
    found, logged = gradients(tmp_path / "float16", "fp16", towers)
    assert found.keys() == expected.keys() and logged == pytest.approx(norm, rel=0.01) and logged != norm
    largest = max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0.05, atol=0.003 * largest, msg=f"{name} differs")


def test_gradients_are_clipped_without_the_scale(tmp_path):
    _, _, taken = run(tmp_path, max_norm=0.5)
    assert len(taken) == STEPS and max(row["grad_norm"] for row in rows(tmp_path)) < SCALE / 10
    for step, row in zip(taken, rows(tmp_path), strict=True):
        assert step.norm == pytest.approx(min(row["grad_norm"], 0.5), rel=1e-4)
    assert max(row["grad_norm"] for row in rows(tmp_path)) > 0.5  # some were clipped


def test_a_step_whose_gradient_overflows_is_skipped_and_the_scale_halved(tmp_path):
    """Its place in the schedule is used up, and its average is that of the step before."""
    _, averages, taken = run(tmp_path, overflow_at=(2, 6), describe=lambda step: step)
    assert [step.step for step in taken] == [0, 1, 3, 4, 5, 7]
    assert [step.rate for step in taken] == [learning_rate(step.step, STEPS, 0.1, 2) for step in taken]
    found = rows(tmp_path)
    scale = SCALE  # doubled after three steps without an overflow, halved after one with
    assert [row["loss_scale"] for row in found] == [scale] * 3 + [scale / 2] * 3 + [scale, scale / 2]
    assert [row["skipped_steps"] for row in found] == [0, 0, 1, 1, 1, 1, 2, 2]
    assert [step for step, row in enumerate(found) if "grad_norm" not in row] == [2, 6]
    assert all(torch.tensor(row["loss"]).isfinite() for row in found) and not (tmp_path / "non-finite.json").exists()
    for step in range(1, STEPS):
        same = all(map(torch.equal, averages[step], averages[step - 1]))
        assert same == (step in (2, 6))


def test_a_killed_run_continues_bit_for_bit(tmp_path):
    """The checkpoint is in the middle of a growth interval, behind a skipped step."""
    whole, expected, _ = run(tmp_path / "whole", overflow_at=(1,))
    run(tmp_path / "killed", overflow_at=(1,), kill_after=5)
    (checkpoint,) = (tmp_path / "killed" / "checkpoints").iterdir()
    assert checkpoint.name == "step-3.safetensors"
    AcceleratorState._reset_state(reset_partial_state=True)
    resumed, averages, _ = run(tmp_path / "killed", overflow_at=(1,))
    for a, b in zip([*whole.parameters(), *expected[-1]], [*resumed.parameters(), *averages[-1]], strict=True):
        assert torch.equal(a, b)
    found = rows(tmp_path / "killed")
    assert found == rows(tmp_path / "whole") and len(found) == STEPS
    assert [row["loss_scale"] for row in found] == [SCALE, SCALE, SCALE / 2, SCALE / 2, SCALE / 2, SCALE, SCALE, SCALE]


def test_another_run_on_the_same_accelerator_begins_with_a_scale_as_new(tmp_path):
    accelerator = make_accelerator()
    run(tmp_path / "first", accelerator, overflow_at=(0, 1, 7))
    run(tmp_path / "second", accelerator)
    run(tmp_path / "alone")
    assert rows(tmp_path / "second") == rows(tmp_path / "alone")
    assert rows(tmp_path / "first")[-1]["loss_scale"] != rows(tmp_path / "second")[-1]["loss_scale"]


def test_a_checkpoint_of_float32_goes_on_in_float16(tmp_path):
    run(tmp_path, make_accelerator("no"), kill_after=4)
    AcceleratorState._reset_state(reset_partial_state=True)
    run(tmp_path, make_accelerator())
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    assert checkpoints.load_weights({"model": model}) == STEPS
    assert checkpoints.loss_scale["scaler"]["scale"] == 2 * SCALE and checkpoints.loss_scale["skipped_steps"] == 0


def test_a_loss_that_is_not_finite_still_ends_the_run(tmp_path):
    message = r"step 4: loss nan, gradient norm nan at a loss scale of 2048; its batch is in .*non-finite"
    with pytest.raises(NonFiniteLossError, match=message):
        run(tmp_path, nan_at=4, describe=lambda step: {"indices": [step]})
    assert json.loads((tmp_path / "non-finite.json").read_text())["batch"] == {"indices": [4]}
    assert [row["skipped_steps"] for row in rows(tmp_path)] == [0] * 4


def test_gradients_that_no_scale_keeps_finite_end_the_run(tmp_path):
    """The slope of a root at zero is infinite: lowering the scale for ever would hide it."""
    model = nn.Linear(4, 1)

    def loss(model, step):
        return {"loss": (0 * model(torch.ones(2, 4))).sqrt().sum()}

    plan = Plan(STEPS, 0.1, 0, 0.0, 1.0, 3, 1, 1)
    with pytest.raises(NonFiniteLossError, match=r"step 3: loss 0, gradient norm nan at a loss scale of \S+e-05"):
        fit(make_accelerator(init_scale=6 * MIN_SCALE), model, loss, plan, tmp_path)
    assert [row["skipped_steps"] for row in rows(tmp_path)] == [1, 2, 3]


def on_each(folder, rank, size):
    """The loss of the second process overflows; a later one is not finite there alone."""
    found = []
    for name, options in (("skips", {"overflow_at": (2,) if rank else ()}), ("ends", {"nan_at": 4 if rank else None})):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        os.environ.update({key: str(value) for key, value in environment.items()})
        accelerator = make_accelerator()
        assert accelerator.num_processes == size
        try:
            model, _, taken = run(folder / name, accelerator, **options)
            found.append(([p.detach().clone() for p in model.parameters()], [step.step for step in taken]))
        except NonFiniteLossError as error:
            found.append(str(error))
        AcceleratorState._reset_state()
    return found


@pytest.mark.slow
def test_processes_skip_a_step_together(tmp_path):
    (first, ended), (second, other) = spawned(2, partial(on_each, tmp_path))
    assert first[1] == second[1] == [0, 1, 3, 4, 5, 6, 7]
    for a, b in zip(first[0], second[0], strict=True):
        assert torch.equal(a, b)
    assert ended.startswith("step 4: loss ") and other.startswith("step 4: loss nan, gradient norm nan")
    assert [row["skipped_steps"] for row in rows(tmp_path / "skips")] == [0, 0, 1, 1, 1, 1, 1, 1]


def test_fsdp_is_refused():
    accelerator = make_accelerator()
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = type("Plugin", (), {"fsdp_version": 2})()
    with pytest.raises(ValueError, match=r'"fp16" is not supported under FSDP2: .* use "bf16" or "no"'):
        check_launch(accelerator)


@pytest.mark.slow
def test_a_launch_in_fp16_trains(root, tmp_path):
    data = write_table(tmp_path / "train.parquet", ["red apple", "cat", "dog", "bus"], size=32)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines"]
    command += ["1", "--mixed_precision", "fp16", "--dynamo_backend", "no", root / "training" / "train_clip.py"]
    command += ["--data", data, "--output", tmp_path / "run", "--batch_size", 4, "--steps", 2, "--log_every", 1]
    command += ["--image_size", 32, "--image_width", 32, "--image_layers", 1, "--text_width", 32, "--text_layers", 1]
    command += ["--vocab_size", 600, "--context_length", 12]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert all({"loss_scale", "skipped_steps"} <= row.keys() for row in rows(tmp_path / "run"))
