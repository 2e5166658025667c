"""Towers of noisy latents to test with: the true likelihood of the Gaussian oracle, and one of a tiny pipeline."""

from types import SimpleNamespace

import torch

from clip_guidance.guidance.modes.noisy import latent_probe
from clip_guidance.towers.noisy import PROBE_TEXT, NoisyTower
from helpers.factories import make_clip
from helpers.gaussian import STD, TILT, make_pipe


class ExactTower(NoisyTower):
    """log p(y|x) of the target y with p(y|x₀) ∝ exp(TILT·x₀), for data N(μ, STD²): TILT·E[x₀|x] and a constant."""

    def forward(self, latents, log_snr):
        angle = (-log_snr.double()).exp().atan()[:, None, None, None]
        gain = angle.cos() * STD**2 / (angle.cos() ** 2 * STD**2 + angle.sin() ** 2)
        return SimpleNamespace(embeds=(TILT * gain * latents).flatten(1), logit_scale=torch.zeros(len(latents)))


class Reward:
    """A target of one number, of which the tower's embedding is the log-likelihood."""

    has_regions = False
    clip = SimpleNamespace(encode_text=lambda text: torch.ones(1, 1), name_or_path="", device="cpu")

    def __call__(self, x):
        raise AssertionError("mode 'noisy' does not read the predicted clean sample")

    def embeds_for(self, batch):
        return torch.ones(batch, 1)


def with_tower(setting):
    pipe, tower = make_pipe(setting), ExactTower(1, 1, [8], 1).double()
    latents = torch.ones(1, 1, 8, 8)
    encoded = SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))
    config = SimpleNamespace(latent_channels=1, scaling_factor=1.0)
    pipe.vae = SimpleNamespace(device="cpu", dtype=torch.float32, config=config, encode=lambda images: encoded)
    tower.latent_probe.copy_(latents[0])
    tower.text_probe.fill_(1.0)
    return pipe, tower


def make_tower(vae, patch_size=1):
    """A random tower that reads the latents of ``vae``, and belongs to the CLIP of the factories."""
    torch.manual_seed(0)
    clip = make_clip()
    tower = NoisyTower(vae.config.latent_channels, clip.projection_dim, [8, 16], 1, patch_size)
    for block in tower.modules():
        if hasattr(block, "modulation"):
            torch.nn.init.normal_(block.modulation.weight, std=0.1)  # the level matters
            torch.nn.init.normal_(block.conv2.weight, std=0.1)
    tower.latent_probe.copy_(latent_probe(vae))
    tower.text_probe.copy_(clip.encode_text(PROBE_TEXT)[0])
    return tower.eval()
