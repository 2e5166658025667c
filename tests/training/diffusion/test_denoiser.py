"""The UNet that training makes, and its error on images it never saw."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

import clip_guidance as cg
from clip_guidance.data.dataset import CaptionedImages, Row
from clip_guidance.training.diffusion import denoiser


class Constant(nn.Module):
    """Predicts this velocity everywhere."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> object:
        return type("Output", (), {"sample": torch.full_like(x, self.value)})()


@pytest.fixture
def images() -> CaptionedImages:
    drawn = torch.randint(0, 256, (300, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return CaptionedImages(drawn, [Row("apple", "noto", ())] * 300)


@pytest.mark.slow
def test_the_error_of_a_constant_is_known(images):
    """v = √ᾱ ε − √(1 − ᾱ) x₀, so that E(v − c)² = ᾱ + (1 − ᾱ) E x₀² + 2c √(1 − ᾱ) E x₀ + c²."""
    pipe: StableDiffusionPipeline = cg.load_pipeline("emoji")
    error = denoiser.HeldOutError(pipe, images)
    alpha_squared = pipe.scheduler.alphas_cumprod[error.timesteps]
    sigma, mean = (1 - alpha_squared).sqrt(), error.latents.flatten(1).mean(1)
    squares = error.latents.square().flatten(1).mean(1)
    for value in (0.0, 0.7):
        pipe.unet = Constant(value)
        expected = (alpha_squared + (1 - alpha_squared) * squares + 2 * value * sigma * mean).mean() + value**2
        assert error() == pytest.approx(expected.item(), rel=0.02)
        assert error() == error()  # the same times and noise every time
    assert error.timesteps.min() == 0 and error.timesteps.max() > 990


def test_every_resolution_hears_the_text():
    torch.manual_seed(0)
    unet = denoiser.make_unet([16, 32], 4, 8, 32).eval()
    denoiser.set_dropout(unet, 0.5)
    for module in unet.modules():
        if type(module).__name__ == "Attention":  # the lower resolutions' own way to hear it
            nn.init.zeros_(module.to_out[0].weight)
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(2, 12, 32)
    outputs = [unet(x, t, text[i : i + 1]).sample for i in range(2)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4
    assert unet(x, t, text[:1]).sample.equal(outputs[0])  # dropout is of training alone
    assert not unet.train()(x, t, text[:1]).sample.equal(outputs[0])


def test_known_channels_survive_new_ones():
    torch.manual_seed(0)
    unet = denoiser.make_unet([16, 32], 2, 8, 32).eval()
    for parameter in unet.parameters():  # zeros at the start would hide a place that is mixed up
        nn.init.normal_(parameter, std=0.1)
    wide = denoiser.inflated_unet(unet, 5).eval()
    x, t, text = torch.randn(3, 5, 8, 8), torch.tensor([500]), torch.randn(3, 12, 32)
    with torch.no_grad():
        narrow, found = unet(x[:, :2], t, text).sample, wide(x, t, text).sample
    torch.testing.assert_close(found[:, :2], narrow)
    assert found[:, 2:].eq(0).all() and narrow.abs().min() > 0
    assert wide.config.in_channels == wide.config.out_channels == 5 and unet.config.in_channels == 2
    with pytest.raises(ValueError, match="latent_channels: expected at least the 5 of the UNet, got 2"):
        denoiser.inflated_unet(wide, 2)
