"""The autoencoder of the diffusion model: more latent channels, its loss, what is measured of it, and its training."""

import math

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from helpers.tables import write_table

from clip_guidance.data.dataset import CaptionedImages
from clip_guidance.training.diffusion import autoencoder
from clip_guidance.training.diffusion import train_autoencoder as training


@pytest.fixture
def vae():
    torch.manual_seed(0)
    vae = autoencoder.make_autoencoder([8, 8], 2, 16).eval()
    for parameter in vae.parameters():  # biases too begin at random, so that each has a place to be kept in
        torch.nn.init.normal_(parameter, std=0.3)
    return vae


@pytest.fixture
def images():
    return torch.randint(0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@torch.no_grad()
def test_known_channels_survive_new_ones(vae, images):
    wide = autoencoder.inflated(vae, 5).eval()
    x = autoencoder.pixels(images, torch.device("cpu"))
    known, found = vae.encode(x).latent_dist, wide.encode(x).latent_dist
    torch.testing.assert_close(found.mean[:, :2], known.mean)
    torch.testing.assert_close(found.logvar[:, :2], known.logvar)
    assert found.mean[:, 2:].std((0, 2, 3)).min() > 0 and found.logvar[:, 2:].eq(-9).all()
    latents = torch.cat([known.mean, torch.zeros_like(found.mean[:, 2:])], 1)
    torch.testing.assert_close(wide.decode(latents).sample, vae.decode(known.mean).sample)
    assert not wide.decode(found.mean).sample.equal(wide.decode(latents).sample)  # the decoder hears the new ones
    same = autoencoder.inflated(vae, 2).eval()
    assert same.encode(x).latent_dist.mean.equal(known.mean)
    with pytest.raises(ValueError, match="expected at least the 2 of the autoencoder, got 1"):
        autoencoder.inflated(vae, 1)


@torch.no_grad()
def test_quickened_channels_sound_the_same_and_grow_faster(vae):
    latents = torch.randn(2, 2, 8, 8)
    before = vae.decode(latents).sample
    known = vae.decoder.conv_in.weight[:, :1].clone()
    autoencoder.quicken(vae, 1, gain=16)
    torch.testing.assert_close(vae.decode(latents).sample, before)
    assert vae.decoder.conv_in.weight[:, :1].equal(known)
    assert vae.post_quant_conv.weight[1, 1].item() == pytest.approx(16)


def test_a_ramp_differs_by_its_slope():
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(4.0), indexing="ij")
    found = autoencoder.differences((3 * x + 2 * y)[None, None])
    assert found.shape == (1, 2, 4, 3)
    assert found[0, 0].eq(3).all() and found[0, 1].eq(2).all()


def test_a_constant_shift_has_errors_known_beforehand(vae, images, monkeypatch):
    shift = 0.1 * torch.arange(1.0, 7.0).view(6, 1, 1, 1)
    x = autoencoder.pixels(images, torch.device("cpu"))
    monkeypatch.setattr(vae, "decode", lambda latents: type("Output", (), {"sample": x + shift})())
    values = autoencoder.AutoencoderLoss(vae, 0.0, edge_weight=7.0, decibel_weight=0.5)(x)
    squares = shift.square().flatten()
    log_mse = (squares + 1e-5).log().mean()
    assert values["edges"].item() == pytest.approx(0, abs=1e-6)  # both sides of each edge are shifted alike
    assert values["log_mse"].item() == pytest.approx(log_mse.item(), rel=1e-4)
    expected = shift.mean() + 2 * squares.mean() + 0.5 * log_mse
    assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_psnr_of_a_known_error(vae, monkeypatch):
    """Errors of 0.1 and 0.01 in [0, 1] are 20 and 40 dB; together 10 log10 of 2/0.0101."""
    grey = torch.full((2, 3, 16, 16), 51, dtype=torch.uint8)
    x = autoencoder.pixels(grey, torch.device("cpu"))
    moved = x + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)
    monkeypatch.setattr(vae, "decode", lambda latents: type("Output", (), {"sample": moved})())
    assert autoencoder.mean_psnr(vae, grey, torch.device("cpu")) == pytest.approx(30, abs=1e-3)
    assert autoencoder.psnr(vae, grey, torch.device("cpu")) == pytest.approx(10 * math.log10(2 / 0.0101), abs=1e-3)
    monkeypatch.setattr(vae, "decode", lambda latents: type("Output", (), {"sample": x})())
    assert autoencoder.mean_psnr(vae, grey, torch.device("cpu")) == pytest.approx(60, abs=1e-3)


@pytest.mark.slow
def test_training_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    table = write_table(tmp_path / "train.parquet", ["cat", "dog", "bus", "tree"], size=16)
    data = CaptionedImages.load(table, 16)
    kinds = {"size": 16, "channels": [8, 8], "latent_channels": 3, "batch_size": 2, "warmup": 1, "noise": 0.1}
    kinds |= {"data": str(table), "save_every": 1, "evaluate_every": 3, "steps": 3}
    settings = training.Settings(output=str(tmp_path / "whole"), **kinds)
    whole = training.train(settings, data, Accelerator(cpu=True), data)
    fit = training.fit

    def stopped(accelerator, model, loss, plan, *options, **more):
        def killed(model, step):
            if step == 1:
                raise KeyboardInterrupt
            return loss(model, step)

        fit(accelerator, model, killed, plan, *options, **more)

    settings = training.Settings(output=str(tmp_path / "parts"), **kinds)
    monkeypatch.setattr(training, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        training.train(settings, data, Accelerator(cpu=True))
    monkeypatch.setattr(training, "fit", fit)
    resumed = training.train(settings, data, Accelerator(cpu=True))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)
    assert "mean_psnr" in (tmp_path / "whole" / "log.jsonl").read_text()


@pytest.mark.slow
def test_the_program_saves_a_stock_autoencoder_of_unit_variance(tmp_path, capsys):
    names = ["cat", "dog", "bus"]
    table = str(write_table(tmp_path / "train.parquet", names, size=64))
    options = {"latent_channels": 6, "steps": 1, "batch_size": 2, "warmup": 1, "validation_count": 2}
    training.main(training.Settings(table, str(tmp_path), "emoji", table, **options))
    vae = AutoencoderKL.from_pretrained(tmp_path / "final", torch_dtype=torch.float32, use_safetensors=True)
    assert vae.config.latent_channels == 6 and vae.config.scaling_factor == 1
    assert (tmp_path / "final" / "diffusion_pytorch_model.safetensors").stat().st_size < 3.2e6  # float16
    images = CaptionedImages.load(table, 64).images
    latents = training.AutoencoderLoss(vae, 0.0).vae.encode(images / 127.5 - 1).latent_dist.mean
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(6), atol=0.02, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(6), atol=0.02, rtol=0)
    assert f"dB on {len(images)} images" in capsys.readouterr().out


@torch.no_grad()
def test_latents_are_those_of_the_scheduler(vae, images):
    plain = autoencoder.encode(vae, images, torch.device("cpu"))
    expected = vae.encode(autoencoder.pixels(images, torch.device("cpu"))).latent_dist.mean
    torch.testing.assert_close(plain, expected)
    vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    torch.testing.assert_close(autoencoder.encode(vae, images, torch.device("cpu")), 0.5 * (expected - 0.25))
