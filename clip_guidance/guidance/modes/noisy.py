"""Mode "noisy": the gradient of a tower that reads the noisy sample itself.

    Δ = (σ²/α) · ∇ₓ r(x),    r(x) = exp(τ(level))·cos(tower(x/√(α² + σ²), log(α/σ)), target)

By Tweedie's formula E[x₀|x, y] − E[x₀|x] = (σ²/α)·∇ₓ log p(y|x), and the tower (:mod:`clip_guidance.towers.noisy`) is
trained to be log p(y|x) up to a constant, where mode "exact" takes r(E[x₀|x]) for it. This is classifier guidance
(Dhariwal & Nichol 2021, arXiv:2105.05233, section 4.1) with GLIDE's noised CLIP (Nichol et al. 2021, arXiv:2112.10741,
section 2.4), in latents. It costs the tower, forward and backward: no decoder, no backward through the denoiser.

Where α is small, σ²/α makes the tower's error larger than any posterior: as in mode "exact" each sample's shift is at
most three standard deviations of the posterior long, rms(scale·Δ) ≤ 3·√w. Below log(α/σ) = −6, and at α = 0, the
gradient is taken at −6, where Δ has come to its limit: σ²/α grows as the gradient falls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_guidance.clip.hub import PACKAGED, ModelError, packaged_models
from clip_guidance.guidance.checks import shown
from clip_guidance.guidance.modes.base import StepState
from clip_guidance.guidance.modes.x0 import correlation, posterior_variance
from clip_guidance.guidance.per_sample import capped
from clip_guidance.towers.noisy import LOG_SNR, PROBE_TEXT, NoisyTower, probe_image

FOLDER = "noisy"  # of the tower that belongs to a CLIP, in the CLIP's folder
_DEVIATIONS = 3.0
_TOLERANCE = 0.1  # of the probes, relative: half precision is within a hundredth


@dataclass(frozen=True)
class Noisy:
    """Steer by a tower that reads noisy latents, as a mode of :class:`~clip_guidance.guidance.CLIPGuidance`.

    Args:
        tower: The tower; None for the one that belongs to the guidance's CLIP, in the folder ``noisy`` of the CLIP's.

    Raises:
        TypeError: ``tower`` is something else.

    Example:
        >>> import clip_guidance as cg
        >>> tower = cg.NoisyTower(latent_channels=4, embed_dim=128, widths=[8, 16])
        >>> cg.CLIPGuidance("emoji", "a red apple", scale=5.0, mode=cg.Noisy(tower)).scale
        5.0
    """

    tower: NoisyTower | None = None
    name: ClassVar[str] = "noisy"
    needs_tape: ClassVar[bool] = False
    needs_correction: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.tower, NoisyTower | None):
            raise TypeError(f"tower must be a NoisyTower, got {type(self.tower).__name__} {shown(self.tower)}")

    def check(self, scheduler: Any) -> None:
        """Refuse nothing: the tower knows every noise level."""

    def fitted(self, pipe: Any, reward: Any) -> Self:
        """Find the tower, and check that it belongs to the pipeline's latents and to the reward's CLIP.

        Raises:
            TypeError: The reward is not CLIP's logit.
            ValueError: The reward has regions, or the tower was trained on other latents or with another CLIP.
            ModelError: No tower belongs to the CLIP.
        """
        if not hasattr(reward, "embeds_for"):
            given = type(reward).__name__
            raise TypeError(f"mode {self.name!r} steers towards the target of a CLIPGuidance, got {given}")
        if reward.has_regions:
            raise ValueError(f"mode {self.name!r} reads the whole sample: a Region needs mode 'x0' or 'exact'")
        tower = self.tower or _tower_of(reward.clip, self.name)
        _check_latents(tower, pipe, self.name)
        found = reward.clip.encode_text(PROBE_TEXT)[0].to(tower.text_probe)
        if found.shape != tower.text_probe.shape or not _alike(found, tower.text_probe):
            other = f"another CLIP than {reward.clip.name_or_path or 'this CLIP'}, whose texts differ"
            raise ValueError(f"mode {self.name!r}: the tower was trained with {other}")
        return replace(self, tower=tower)

    def shift(self, state: StepState) -> Tensor:
        """Return Δ for a scale of 1, of the shape of the sample."""
        level, tower = state.level, self.tower
        assert tower is not None  # `fitted` found it
        log_snr = max(math.log(level.alpha / level.sigma), -LOG_SNR) if level.alpha > 0 else -LOG_SNR
        x = state.sample.detach().to(state.x0).requires_grad_()
        weight = tower.projection.weight  # its device is at hand; diffusers searches all modules for that of the tower
        with torch.enable_grad():
            read = (x / math.hypot(level.alpha, level.sigma)).to(weight)
            found = tower(read, torch.full((len(x),), log_snr, device=weight.device))
            cosines = (found.embeds * state.reward.embeds_for(len(x)).to(found.embeds)).sum(-1)
            rewards = found.logit_scale.exp() * cosines
            (gradient,) = torch.autograd.grad(rewards.sum(), x)
        state.note(rewards.detach())
        deviations = _DEVIATIONS * math.sqrt(posterior_variance(level, state.data_variance))
        factor = level.sigma * math.exp(-log_snr)
        if level.of_consistency:  # s²·(1 − ρ²) becomes s²·(1 − ρ), as in mode "x0"
            factor /= 1 + correlation(level, state.data_variance)
        limit = deviations / state.scale.abs().to(gradient)  # infinite at a scale of 0
        return capped(factor * gradient, limit).shift


def latents_of(vae: Any, images: Tensor, device: torch.device | None = None) -> Tensor:
    """Encode images (B, 3, H, W) in [-1, 1] to the latents (B, C, h, w) that a pipeline's scheduler sees, in float32.

    They are the most likely ones, without the encoder's noise. An autoencoder that is offloaded computes on another
    device than its weights wait on: ``device``.
    """
    with torch.no_grad():
        latents = vae.encode(images.to(device or vae.device, vae.dtype)).latent_dist.mode().float()
    return (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor


def latent_probe(vae: Any, device: torch.device | None = None) -> Tensor:
    """Return what an autoencoder makes of a known image, (C, 8, 8): it tells latent spaces apart."""
    return F.adaptive_avg_pool2d(latents_of(vae, probe_image()[None], device), 8)[0]


def _tower_of(clip: Any, mode: str) -> NoisyTower:
    name = str(clip.name_or_path)
    folder = PACKAGED / name / "clip" if name in packaged_models() else Path(name)
    if not name or not (folder / FOLDER / "config.json").is_file():
        raise ModelError(
            f"mode {mode!r}: no tower for noisy latents belongs to {name or 'this CLIP'}; train one with "
            f"`clip-guidance train noisy-tower`, and pass mode={mode.capitalize()}(tower)"
        )
    return NoisyTower.from_pretrained(folder / FOLDER).to(clip.device)


def _check_latents(tower: NoisyTower, pipe: Any, mode: str) -> None:
    vae, name = getattr(pipe, "vae", None), type(pipe).__name__
    if vae is None or not hasattr(vae, "encode"):
        raise ValueError(f"mode {mode!r} needs the latents of an autoencoder, which {name} has not")
    channels = getattr(vae.config, "latent_channels", None)
    if channels != tower.config["latent_channels"]:
        expected = tower.config["latent_channels"]
        raise ValueError(f"mode {mode!r}: the tower reads latents of {expected} channels, {name} has {channels}")
    probe = latent_probe(vae, getattr(pipe, "_execution_device", None))
    if not _alike(probe.to(tower.latent_probe), tower.latent_probe):
        raise ValueError(f"mode {mode!r}: the tower was trained on the latents of another autoencoder than {name}'s")


def _alike(found: Tensor, known: Tensor) -> bool:
    return bool((found - known).norm() <= _TOLERANCE * known.norm())
