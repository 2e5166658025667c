"""What processes on several machines must agree about, and how the loss of one is told."""

from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from clip_guidance.metrics.job.processes import LostProcessError
from clip_guidance.training import launch, trainer
from clip_guidance.training.checkpoints import CheckpointError
from clip_guidance.training.launch import DisagreementError, check_agreement
from clip_guidance.training.trainer import Plan, fit

PLAN = Plan(4, 0.1, 0, 0.0, 1.0, seed=0, log_every=1, save_every=2)


@dataclass
class Settings:
    data: str = "here"
    output: str = "there"
    seed: int = 3


def gathering(monkeypatch, module, *others):
    """Let two machines more have told these things."""
    monkeypatch.setattr(module, "gather_object", lambda found: [*found, *others])


def test_settings_and_data_must_be_the_same_and_places_need_not(monkeypatch):
    check_agreement(Settings(), vocabulary="ab")
    gathering(monkeypatch, launch, {"seed": 3, "vocabulary": "ab", "data": "elsewhere"})
    check_agreement(Settings(), vocabulary="ab")
    with pytest.raises(DisagreementError, match=r"^vocabulary: process 0 has 'cd', process 1 has 'ab'; all"):
        check_agreement(Settings(), vocabulary="cd")
    with pytest.raises(DisagreementError, match=r"^seed: process 0 has 4, process 1 has 3; all machines must get"):
        check_agreement(Settings(seed=4), vocabulary="ab")


def train(folder, loss=lambda model, step: {"loss": model(torch.ones(1, 2)).sum()}):
    torch.manual_seed(0)
    fit(Accelerator(cpu=True), nn.Linear(2, 1), loss, PLAN, folder)


def test_an_output_that_machines_do_not_share_is_refused(tmp_path, monkeypatch):
    gathering(monkeypatch, trainer, 2)
    with pytest.raises(CheckpointError, match=r"checkpoints of different steps \(0, 2\); the output must be"):
        train(tmp_path)


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (1, "^another of the 1 processes ended in step 2 of 4: what was learnt since the beginning is lost"),
        (3, "ended in step 4 of 4: what was learnt since the checkpoint of step 2 is lost; the same command on all"),
    ],
)
def test_the_steps_that_are_lost_with_a_process_are_named(tmp_path, step, told):
    def lost(model, now):
        if now == step:
            raise RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:26860")
        return {"loss": model(torch.ones(1, 2)).sum()}

    with pytest.raises(LostProcessError, match=told):
        train(tmp_path, lost)


def test_other_errors_stay_what_they_are(tmp_path):
    def wrong(model, step):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="^shapes do not match$"):
        train(tmp_path, wrong)
