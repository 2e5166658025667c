"""Settings, sample order, schedule, log and checkpoints of the training programs."""

import contextlib
import itertools
import json
import time
from dataclasses import dataclass, field

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from clip_guidance.training.batches import Prefetcher
from clip_guidance.training.ema import make_ema_model
from clip_guidance.training.log import plot_log, read_log
from clip_guidance.training.optimizer import learning_rate, parameter_groups, warmup_steps
from clip_guidance.training.order import SampleOrder, batches
from clip_guidance.training.settings import parse_settings
from clip_guidance.training.trainer import NonFiniteLossError, Plan, fit


@dataclass(frozen=True)
class Settings:
    data: str
    steps: int = 10  # optimizer steps, 100 % of them
    rate: float = 1e-3
    widths: list[int] = field(
        default_factory=lambda: [1, 2]
    )  # of the layers’ “channels”


def test_the_command_line_wins_over_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: here\nsteps: 3\nwidths: [4, 5]\n")
    assert parse_settings(Settings, ["--config", str(recipe), "--steps", "7"]) == Settings("here", 7, 1e-3, [4, 5])


def test_the_comment_behind_a_field_is_its_help_line(capsys):
    @dataclass(frozen=True, kw_only=True)
    class Further(Settings):
        seed: int = 0  # of all draws
        trusted: str | None = None  # where there is one

    with pytest.raises(SystemExit):
        parse_settings(Further, ["--help"])
    shown = capsys.readouterr().out
    assert "optimizer steps, 100 % of them (default: 10)" in shown and "of the layers’ “channels” (default" in shown
    assert "of all draws (default: 0)" in shown and "YAML recipe" in shown
    assert "--data DATA" in shown and "--trusted TRUSTED" in shown and "default: None" not in shown
    assert parse_settings(Further, ["--data", "here"]) == Further("here")


def test_mistakes_in_settings_are_named(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: here\nstep: 3\n")
    for arguments, message in [
        (["--config", str(recipe)], r"unknown settings ['step']"),
        (["--config", str(tmp_path / "none.yaml")], "no recipe at"),
        (["--data", "x", "--stride", "3"], "--stride"),
        ([], "--data"),
    ]:
        with pytest.raises(SystemExit):
            parse_settings(Settings, arguments)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (b"output: caf\xe9", "cannot be read as a recipe: 'utf-8' codec can't decode"),
        (b"output: [", "cannot be read as a recipe: while parsing"),
        (b"- a\n- b", "expected options and their values, got list"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named(recipe, message, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(recipe)
    with pytest.raises(SystemExit):
        parse_settings(Settings, ["--config", str(path)])
    assert f"{path}: {message}" in capsys.readouterr().err


def test_every_epoch_is_a_new_permutation_and_any_batch_can_be_the_first():
    endless = batches(10, 3, seed=1)
    seen = [next(endless) for _ in range(7)]
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:6])
    assert len(first.unique()) == len(second.unique()) == 9 and not torch.equal(first, second)
    for start in range(7):
        assert torch.equal(next(batches(10, 3, seed=1, start=start)), seen[start])
    with pytest.raises(ValueError, match="batch_size 11 exceeds the 10 samples"):
        next(batches(10, 11, seed=1))


def test_sample_order_may_be_asked_for_any_step():
    order, expected = SampleOrder(10, 3, 5, Accelerator()), batches(10, 3, 5)
    for step in range(5):
        assert torch.equal(order(step), next(expected))
    assert torch.equal(order(2), next(batches(10, 3, 5, start=2)))


def test_learning_rate_warms_up_and_falls_to_zero():
    rates = [learning_rate(step, 100, 0.5, 10) for step in range(101)]
    assert rates[9] == rates[10] == 0.5 and rates[4] == pytest.approx(0.25)
    assert all(a > b for a, b in itertools.pairwise(rates[10:])) and rates[100] == pytest.approx(0)
    assert rates[55] == pytest.approx(0.25)


def test_warmup_below_one_is_a_share_of_the_steps():
    for step in range(201):
        assert learning_rate(step, 200, 0.5, 0.05) == learning_rate(step, 200, 0.5, 10)
    assert [warmup_steps(warmup, 200) for warmup in (0, 0.0, 0.5, 0.999, 1, 1.0, 250)] == [0, 0, 100, 200, 1, 1, 250]
    assert learning_rate(0, 200, 0.5, 0) == 0.5  # no warm-up at all


@pytest.mark.parametrize("warmup", [-1, -0.1, 1.5, float("nan"), float("inf")])
def test_a_warmup_that_makes_no_sense_is_named(warmup):
    with pytest.raises(ValueError, match=rf"warmup: expected a share .* in \[0, 1\) or a whole number .* got {warmup}"):
        Plan(10, 0.1, warmup, 0.0, 1.0, seed=0, log_every=1, save_every=1)


def test_norms_biases_and_temperature_do_not_decay():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    decayed, kept = parameter_groups(module, 0.1)
    assert [p.shape for p in decayed["params"]] == [(4, 3)] and decayed["weight_decay"] == 0.1
    assert len(kept["params"]) == 3 and kept["weight_decay"] == 0


def run(folder, steps: int, total: int = 8) -> tuple[nn.Module, AveragedModel]:
    """Trains a small map on noise up to ``steps`` of ``total``, as a killed and resumed program would."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    ema_model = make_ema_model(model, 0.9)
    accelerator = Accelerator()

    class Killed(Exception):
        pass

    def loss(model: nn.Module, step: int) -> dict[str, torch.Tensor]:
        return {"loss": (model(torch.randn(16, 4)) - 1).square().mean()}

    def kill(done: int) -> dict[str, float]:
        if done == steps + 1 and steps < total:
            raise Killed
        return {}

    plan = Plan(total, 0.1, 2, 0.01, 1.0, seed=3, log_every=1, save_every=3)
    with contextlib.suppress(Killed):
        fit(accelerator, model, loss, plan, folder, phase="test", ema_model=ema_model, after_step=kill)
    return model, ema_model


def test_a_killed_run_continues_bit_for_bit(tmp_path):
    whole, whole_ema = run(tmp_path / "whole", steps=8)
    run(tmp_path / "killed", steps=5)  # killed after step 6, whose checkpoint is that of step 3
    assert sorted(p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()) == ["step-3.safetensors"]
    resumed, resumed_ema = run(tmp_path / "killed", steps=8)
    expected, got = [*whole.parameters(), *whole_ema.parameters()], [*resumed.parameters(), *resumed_ema.parameters()]
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(tmp_path / "whole" / "log.jsonl")]
    again = [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(tmp_path / "killed" / "log.jsonl")]
    assert strip == again and len(strip) == 8


def test_only_the_last_checkpoints_are_kept_and_they_are_safetensors(tmp_path):
    run(tmp_path, steps=8)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-6.safetensors", "step-8.safetensors"]


def test_the_log_can_be_plotted(tmp_path):
    from PIL import Image

    run(tmp_path, steps=8)
    plot_log(tmp_path / "log.jsonl", tmp_path / "log.png")
    with Image.open(tmp_path / "log.png") as image:
        assert image.size[0] > 100


def small(folder, loss, steps=6, **options):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    best = options.pop("best_metric", None)
    plan = Plan(steps, 0.1, 2, 0.0, 1.0, seed=3, log_every=1, save_every=2, best_metric=best)
    fit(Accelerator(), model, loss, plan, folder, **options)
    return model


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_batch(tmp_path):
    """The last checkpoint is from before it, and no weight is spoilt."""

    def loss(model, step):
        value = model(torch.ones(2, 4)).square().mean()
        return {"loss": value * (float("nan") if step == 3 else 1.0)}

    with pytest.raises(NonFiniteLossError, match=r"step 3: loss nan, gradient norm nan; its batch is in .*non-finite"):
        small(tmp_path, loss, describe=lambda step: {"indices": [step, 7]})
    found = json.loads((tmp_path / "non-finite.json").read_text())
    assert found["step"] == 3 and found["batch"] == {"indices": [3, 7]} and found["loss"] == "nan"
    (path,) = (tmp_path / "checkpoints").glob("step-*")
    assert path.name == "step-2.safetensors" and all(value.isfinite().all() for value in load_file(path).values())


def test_the_best_weights_are_those_of_the_highest_metric(tmp_path):
    seen = {}

    def loss(model, step):
        seen[step] = model.weight.detach().clone()
        return {"loss": model(torch.randn(8, 4)).square().mean()}

    metrics = [0.1, 0.5, 0.3, 0.5, 0.4, 0.2]
    small(tmp_path, loss, best_metric="R@1", after_step=lambda done: {"R@1": metrics[done - 1]} if done > 1 else {})
    assert load_file(tmp_path / "checkpoints" / "best.safetensors")["model/weight"].equal(seen[2])  # after two steps


def test_shares_of_all_processes_make_the_batch_of_one():
    def share(rank, size):
        class Process:
            num_processes, process_index = size, rank

        return SampleOrder(50, 12 // size, 5, Process())

    for step in (0, 7):
        whole = share(0, 1)(step)
        for size in (2, 3, 4):
            assert torch.cat([share(rank, size)(step) for rank in range(size)]).equal(whole)
            assert [share(rank, size).first for rank in range(size)] == [rank * 12 // size for rank in range(size)]


def test_what_is_made_ahead_is_what_is_asked_for_and_made_once():
    made: list[int] = []
    ahead = Prefetcher(lambda step: made.append(step) or step * step)
    assert [ahead(step) for step in (5, 6, 7)] == [25, 36, 49]  # a resumed run begins anywhere
    while len(made) < 4:
        time.sleep(0.01)
    assert made == [5, 6, 7, 8]  # one step ahead, none twice
    assert ahead(3) == 9  # out of order: made anew


def test_what_fails_ahead_fails_where_it_is_asked_for():
    def make(step: int) -> int:
        if step == 1:
            raise ValueError("row 1 is bad")
        return step

    ahead = Prefetcher(make)
    assert ahead(0) == 0
    with pytest.raises(ValueError, match="row 1 is bad"):
        ahead(1)
