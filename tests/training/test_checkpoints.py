"""Checkpoints are whole or not there, survive what happens to disks, and fit any number of processes."""

import re

import pytest
import torch
from helpers.processes import spawned
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from clip_guidance.training.checkpoints import Checkpoints, full_state_dict

resource = pytest.importorskip("resource", reason="limits on the size of files are Unix's")


def trained(steps=2, seed=0, shard=None):
    """A small map after some steps of AdamW."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    if shard:
        shard(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer, steps)
    return model, optimizer


def step(model, optimizer, steps):
    for number in range(steps):
        model(torch.full((3, 4), 0.5 + number)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_equal(one, other):
    one, other = full_state_dict(one), full_state_dict(other)
    assert one.keys() == other.keys() and all(value.equal(other[key]) for key, value in one.items())


def loaded(folder, seed=1):
    model, optimizer = trained(0, seed)
    checkpoints = Checkpoints(folder)
    number = checkpoints.load_weights({"model": model})
    checkpoints.load_moments(optimizer)
    return number, model, optimizer


def test_what_is_loaded_trains_on_as_what_was_saved(tmp_path):
    model, optimizer = trained()
    Checkpoints(tmp_path).save(2, {"model": model}, optimizer)
    number, again, moments = loaded(tmp_path)
    assert number == 2
    assert_equal(model, again)
    step(model, optimizer, 2)
    step(again, moments, 2)
    assert_equal(model, again)


def test_an_empty_folder_is_step_zero(tmp_path):
    assert loaded(tmp_path / "none")[0] == 0 and not (tmp_path / "none").exists()


def test_a_process_that_does_not_write_writes_nothing(tmp_path):
    model, optimizer = trained()
    checkpoints = Checkpoints(tmp_path, writes=False)
    checkpoints.save(2, {"model": model}, optimizer)
    checkpoints.save_best(2, {"model": model}, 0.5)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_and_costs_nothing_that_was_saved(tmp_path):
    model, optimizer = trained()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, {"model": model}, optimizer)
    whole = (tmp_path / "step-2.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))
    try:
        message = r"cannot write .*step-3.safetensors \(.*\); the last whole checkpoint is step-2.safetensors"
        with pytest.raises(RuntimeError, match=message):
            checkpoints.save(3, {"model": model}, optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["step-2.safetensors"]
    assert (tmp_path / "step-2.safetensors").read_bytes() == whole


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    model, optimizer = trained()
    checkpoints = Checkpoints(tmp_path)
    for number in (2, 4):
        checkpoints.save(number, {"model": model}, optimizer)
    newest = tmp_path / "step-4.safetensors"
    newest.write_bytes(newest.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="step-4.safetensors cannot be read .*; going back to the one before"):
        number, again, _ = loaded(tmp_path)
    assert number == 2
    assert_equal(model, again)


@pytest.mark.parametrize("places", ["{", "[" * 100_000])
def test_metadata_that_is_no_json_gives_way_to_the_checkpoint_before(tmp_path, places):
    model, optimizer = trained()
    checkpoints = Checkpoints(tmp_path)
    for number in (2, 4):
        checkpoints.save(number, {"model": model}, optimizer)
    newest = tmp_path / "step-4.safetensors"
    save_file(load_file(newest), newest, {"places": places})
    with pytest.warns(UserWarning, match="step-4.safetensors cannot be read .*; going back to the one before"):
        assert loaded(tmp_path)[0] == 2


def test_other_settings_are_named(tmp_path):
    model, optimizer = trained()
    Checkpoints(tmp_path).save(2, {"model": model}, optimizer)
    with pytest.raises(RuntimeError, match=r"(?s)step-2.safetensors was saved with other settings: .*size mismatch"):
        Checkpoints(tmp_path).load_weights({"model": nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2))})


def test_the_best_are_kept_across_restarts(tmp_path):
    first, second = trained(1)[0], trained(2)[0]
    checkpoints = Checkpoints(tmp_path)
    for number, (model, metric) in enumerate([(first, 0.5), (second, 0.4), (second, 0.5), (second, float("nan"))]):
        checkpoints.save_best(number, {"model": model}, metric)
    best = {f"model/{key}": value for key, value in full_state_dict(first).items()}
    kept = load_file(tmp_path / "best.safetensors")
    assert kept.keys() == best.keys() and all(value.equal(best[key]) for key, value in kept.items())
    again = Checkpoints(tmp_path)
    assert again.best == 0.5
    again.save_best(9, {"model": second}, 0.6)
    assert Checkpoints(tmp_path).best == 0.6


def shard(model):
    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


class SavesAndGoesOn:
    """Two processes with a sharded model save it, load it again and train on."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, rank, size):
        model, optimizer = trained(2, shard=shard)
        Checkpoints(self.folder, writes=rank == 0).save(2, {"model": model}, optimizer)
        torch.distributed.barrier()
        torch.manual_seed(5)
        again = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
        checkpoints = Checkpoints(self.folder, writes=False)
        checkpoints.load_weights({"model": again})
        shard(again)
        moments = torch.optim.AdamW(again.parameters(), lr=0.1)
        checkpoints.load_moments(moments)
        for each in ((model, optimizer), (again, moments)):
            step(*each, 2)
        return full_state_dict(model), full_state_dict(again)


@pytest.mark.slow
def test_two_sharded_processes_save_for_themselves_and_for_one(tmp_path):
    for trained_on, again in spawned(2, SavesAndGoesOn(tmp_path)):
        assert all(value.equal(again[key]) for key, value in trained_on.items())
    number, alone, optimizer = loaded(tmp_path)
    assert number == 2
    step(alone, optimizer, 2)
    for key, value in full_state_dict(alone).items():
        torch.testing.assert_close(value, trained_on[key], msg=lambda text, key=key: f"{key}: {text}")


def test_messages_name_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    model, optimizer = trained()
    with pytest.raises(RuntimeError, match=re.escape(f"cannot write {tmp_path / 'file' / 'step-1.safetensors'}")):
        Checkpoints(tmp_path / "file").save(1, {"model": model}, optimizer)
