"""What no program of this room takes: counts below one, shares that are none, models that do not fit."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.factories import make_clip

import clip_guidance as cg
from clip_guidance.clip.hub import ModelError
from clip_guidance.training.diffusion import (
    autoencoder,
    train_autoencoder,
    train_diffusion,
    train_noisy_tower,
    train_student,
)

SETTINGS = [
    train_autoencoder.Settings("data", "out"),
    train_diffusion.Settings("data", "out", "clip"),
    train_noisy_tower.Settings("data", "out", "clip", "vae"),
    train_student.Settings("data", "out", "teacher"),
]
PROGRAMS = [train_autoencoder, train_diffusion, train_noisy_tower, train_student]
BOTH = list(zip(PROGRAMS, SETTINGS, strict=True))


def refused(program, settings):
    with pytest.raises(SystemExit) as end:
        program.main(settings)
    return end.value.code


@pytest.mark.parametrize(("program", "settings"), BOTH)
def test_numbers_without_a_meaning_are_refused_by_name(program, settings):
    for name in ("size", "batch_size", "log_every", "save_every", "evaluate_every"):
        if hasattr(settings, name):
            assert refused(program, replace(settings, **{name: 0})) == f"--{name}: expected at least 1, got 0"
    for decay in (0.0, 1.0, float("nan")):
        expected = f"--ema_decay: expected a share in (0, 1), got {decay:g}"
        assert refused(program, replace(settings, ema_decay=decay)) == expected


def test_a_phase_and_what_it_needs():
    settings = train_diffusion.Settings("data", "out")
    wrong = refused(train_diffusion, replace(settings, phase="unet"))
    assert wrong == '--phase: expected "autoencoder" or "all", got \'unet\''
    assert refused(train_diffusion, settings).startswith("--clip: needed to train the UNet")


def test_an_alignment_has_a_weight_and_a_share():
    settings = train_diffusion.Settings("data", "out", "clip", alignment="clip")
    said = refused(train_diffusion, replace(settings, alignment_share=1.5))
    assert said == "--alignment_share: expected a share in [0, 1], got 1.5"
    said = refused(train_diffusion, replace(settings, alignment_weight=0.0))
    assert said == "--alignment_weight: expected a number above 0, got 0"


def test_a_clip_without_a_stock_text_tower_is_refused(tmp_path):
    make_clip("resnet", "cbow").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a stock pipeline needs a text tower that is a CLIPTextModel, got CBOW"):
        train_diffusion.load_clip(str(tmp_path))


def test_a_pipeline_without_an_autoencoder_is_refused(monkeypatch):
    monkeypatch.setattr(autoencoder, "load_pipeline", lambda name: SimpleNamespace())
    with pytest.raises(ModelError, match="pixels: expected an autoencoder or a pipeline with one, got SimpleNamespace"):
        autoencoder.load_autoencoder("pixels")


def test_a_tower_that_cannot_be_gone_on_from_is_refused(tmp_path):
    settings = train_noisy_tower.Settings("data", "out", "clip", "vae", widths=[8], depth=1)
    with pytest.raises(ModelError, match="--widths: expected positive multiples of 8, got .7."):
        train_noisy_tower.first_tower(replace(settings, widths=[7]), 4, 16)
    made = train_noisy_tower.first_tower(settings, 4, 16)
    made.save_pretrained(tmp_path / "tower")
    known = replace(settings, init=str(tmp_path / "tower"), widths=[16, 16])
    again = train_noisy_tower.first_tower(known, 4, 16)
    assert again.training and all(value.equal(again.state_dict()[name]) for name, value in made.state_dict().items())
    with pytest.raises(ModelError, match="tower for latents of 8 channels and embeddings of size 16, got one for 4"):
        train_noisy_tower.first_tower(known, 8, 16)
    autoencoder.make_autoencoder([8, 8], 4, 16).save_pretrained(tmp_path / "vae")
    with pytest.raises(ModelError, match="expected a NoisyTower, got AutoencoderKL"):
        train_noisy_tower.first_tower(replace(known, init=str(tmp_path / "vae")), 4, 16)


@pytest.mark.parametrize(("widths", "patch_size"), [([8, 8, 8], 1), ([8, 8], 2)])
def test_latents_must_have_a_pixel_for_the_last_stage(widths, patch_size):
    tower = cg.NoisyTower(4, 16, widths, 1, patch_size).eval()
    train_noisy_tower.check_side(tower, 4, 16)
    tower(torch.zeros(2, 4, 4, 4), torch.zeros(2))
    with pytest.raises(ModelError, match=r"\d stages need latents of side 4 or more, got 3 from images of --size 12"):
        train_noisy_tower.check_side(tower, 3, 12)
    with pytest.raises(RuntimeError):
        tower(torch.zeros(2, 4, 3, 3), torch.zeros(2))
