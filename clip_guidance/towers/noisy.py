"""An image tower for noisy latents: it meets the text tower of a CLIP at every noise level.

A CLIP reads clean images, and of a noisy sample it sees the denoiser's estimate, which at high noise is a blur that no
CLIP was trained on. This tower reads the noisy latents themselves, and learns log p(target | x) of each level, as the
noised CLIP of GLIDE does for pixels (Nichol et al. 2021, arXiv:2112.10741, section 2.4). It is a residual network whose
blocks are scaled and shifted by the noise level (Dhariwal & Nichol 2021, arXiv:2105.05233, section 3), small enough
that a step costs little beside the denoiser.

A sample x = αx₀ + σε is read as x/√(α² + σ²), with log(α/σ): so one tower serves every scheduler of its latent space.
How sharply a noisy sample tells targets apart depends on the level, so the temperature does too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from clip_guidance._tensors import unit_vectors

LOG_SNR = 6.0  # of log(α/σ), beyond which a level is as good as clean, or as good as noise
MAX_LOGIT_SCALE = math.log(100.0)
PROBE_TEXT = "a red apple on a table"
_FREQUENCIES = 8


@dataclass(frozen=True)
class NoisyOutput:
    """Embeddings of noisy samples, and what a cosine with them is worth.

    Attributes:
        embeds: Unit vectors (B, d), in at least float32.
        logit_scale: Log of the inverse temperature at each sample's noise level, (B,).
    """

    embeds: Tensor
    logit_scale: Tensor


class NoisyTower(ModelMixin, ConfigMixin):
    """Embed noisy latents in the space of a CLIP.

    ``clip-guidance train noisy-tower`` trains one; ``CLIPGuidance(mode=Noisy(tower))`` steers by it.

    Args:
        latent_channels: Channels C of the latents.
        embed_dim: Size d of the CLIP's embeddings.
        widths: Channels of each stage; every stage after the first has half the side of the one before. Multiples of
            8.
        depth: Number of residual blocks in each stage.
        patch_size: Latents per position of the first stage, across and down, which overlap by one on each side; at
            least 1, and 2 leaves a quarter of the positions.

    Attributes:
        latent_probe: What the autoencoder makes of a known image, (C, 8, 8): another autoencoder makes something else.
        text_probe: Unit vector (d,) that the CLIP makes of a known text.

    Raises:
        ValueError: A width is no positive multiple of 8, or another argument is below 1.

    Example:
        >>> import clip_guidance as cg
        >>> import torch
        >>> tower = cg.NoisyTower(latent_channels=4, embed_dim=16, widths=[8, 16], depth=1).eval()
        >>> found = tower(torch.randn(2, 4, 16, 16), torch.tensor([2.0, -1.0]))  # nearly clean, and mostly noise
        >>> found.embeds.shape, found.logit_scale.shape
        (torch.Size([2, 16]), torch.Size([2]))
    """

    latent_probe: Tensor
    text_probe: Tensor

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        embed_dim: int = 128,
        widths: Sequence[int] = (48, 96, 144, 192),
        depth: int = 2,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        if not widths or any(width < 8 or width % 8 for width in widths):
            raise ValueError(f"widths: expected positive multiples of 8, got {list(widths)!s:.80}")
        if min(latent_channels, embed_dim, depth, patch_size) < 1:
            given = f"latent_channels {latent_channels}, embed_dim {embed_dim}, depth {depth}, patch_size {patch_size}"
            raise ValueError(f"expected at least 1 of each, got {given}")
        level_width = 4 * widths[0]
        self.level = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES, level_width), nn.SiLU(), nn.Linear(level_width, level_width), nn.SiLU()
        )
        self.stem = nn.Conv2d(latent_channels, widths[0], patch_size + 2, stride=patch_size, padding=1)
        pairs = zip([widths[0], *widths[:-1]], widths, strict=True)
        self.stages = nn.ModuleList(
            nn.ModuleList(_Block(first if block == 0 else width, width, level_width) for block in range(depth))
            for first, width in pairs
        )
        self.norm = nn.GroupNorm(8, widths[-1])
        self.projection = nn.Linear(widths[-1], embed_dim)
        self.temperature = nn.Linear(level_width, 1)
        nn.init.zeros_(self.temperature.weight)
        nn.init.constant_(self.temperature.bias, math.log(10.0))
        self.register_buffer("latent_probe", torch.zeros(latent_channels, 8, 8))
        self.register_buffer("text_probe", torch.zeros(embed_dim))

    def forward(self, latents: Tensor, log_snr: Tensor) -> NoisyOutput:
        """Embed noisy latents.

        Args:
            latents: x/√(α² + σ²), (B, C, h, w), with sides of at least patch_size · 2 ** (number of stages - 1).
            log_snr: log(α/σ) of each sample, (B,); from -∞ to ∞.
        """
        level = self.level(_features(log_snr).to(latents.dtype))
        x = self.stem(latents)
        for index, stage in enumerate(self.stages):
            x = F.avg_pool2d(x, 2) if index else x
            for block in stage:  # type: ignore[attr-defined]
                x = block(x, level)
        pooled = F.silu(self.norm(x)).mean((2, 3))
        logit_scale = self.temperature(level)[:, 0].float().clamp(max=MAX_LOGIT_SCALE)
        return NoisyOutput(unit_vectors(self.projection(pooled)), logit_scale)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> NoisyTower:
        """Load a tower from a folder, whose weights are safetensors.

        Args:
            folder: Made by ``save_pretrained``: ``config.json`` and ``diffusion_pytorch_model.safetensors``.
            **options: As of diffusers' ``ModelMixin.from_pretrained``: ``torch_dtype``, ``subfolder`` and so on.

        Raises:
            OSError: There is no such tower.
        """
        options = {"use_safetensors": True, "low_cpu_mem_usage": False, **options}
        return super().from_pretrained(folder, **options).eval()


class _Block(nn.Module):
    """Compute x + f(x), where f is two convolutions, scaled and shifted by the noise level in between."""

    def __init__(self, inputs: int, outputs: int, level_width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(level_width, 2 * outputs)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        nn.init.zeros_(self.conv2.weight)  # a block begins as its skip
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Map (B, inputs, h, w) and the level's features (B, level_width) to (B, outputs, h, w)."""
        scale, shift = self.modulation(level)[:, :, None, None].chunk(2, 1)
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(hidden) * (1 + scale) + shift))


def _features(log_snr: Tensor) -> Tensor:
    """Return sines and cosines of the noise level (B,), (B, 16), of one period and more over the range of levels."""
    angle = log_snr.float().clamp(-LOG_SNR, LOG_SNR) / LOG_SNR * (math.pi / 2)
    angles = angle[:, None] * 2.0 ** torch.arange(_FREQUENCIES, device=log_snr.device)
    return torch.cat([angles.sin(), angles.cos()], -1)


def probe_image() -> Tensor:
    """Return a known image, (3, 64, 64) in [-1, 1]: waves of every direction and colour."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    waves = [torch.sin(2 * math.pi * (a * x + b * y)) for a, b in ((1, 2), (3, -1), (2, 5))]
    return torch.stack(waves)
