"""What a tower for noisy latents learns, and how it is measured.

A latent x₀ is mixed with noise at an angle φ that is drawn from (0, π/2),

    x = cos φ·x₀ + sin φ·ε,    log(α/σ) = log cot φ,

which reaches every noise level of every scheduler. The loss has two parts, with the embedding a of the noisy latent and
the inverse temperature t of its level:

    cross-entropy of t·a·b_k over all texts k of the data          (its own names, and its own captions, in turn)
    1 − cos(a, teacher's embedding of the clean image)             (needs no text: unlabelled images suffice)

The first is log p(text | x) itself; the texts are read once, since the CLIP is frozen (LiT, Zhai et al. 2022,
arXiv:2111.07991). The second hands on what the image tower knows (distillation, Hinton et al. 2015, arXiv:1503.02531).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor, nn

from clip_guidance.clip import DualEncoder
from clip_guidance.data.dataset import CaptionedImages
from clip_guidance.metrics.retrieval import recall_at_k, unique
from clip_guidance.towers.noisy import NoisyTower
from clip_guidance.training.diffusion.autoencoder import encode
from clip_guidance.training.order import SampleOrder
from clip_guidance.zero_shot.templates import TRAINING_TEMPLATES

LEVELS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97)  # shares of noise in the variance, σ²/(α² + σ²), at which it is measured


@dataclass(frozen=True)
class Texts:
    """Texts that images are told apart by.

    Attributes:
        embeds: Unit vectors (v, K, d) of K texts, each in v wordings.
        targets: The right text of each image, int64 (N,).
    """

    embeds: Tensor
    targets: Tensor


def names_of(clip: DualEncoder, data: CaptionedImages) -> Texts:
    """Encode the distinct names of the data in each of the training templates; whole captions as they are."""
    names, targets = unique([row.captions[0] if row.captions else row.name for row in data.rows])
    whole = {row.captions[0] for row in data.rows if row.captions}
    wordings = [[name if name in whole else template.format(name) for name in names] for template in TRAINING_TEMPLATES]
    return Texts(torch.stack([clip.encode_text(texts) for texts in wordings]), targets)


def captions_of(clip: DualEncoder, data: CaptionedImages) -> Texts:
    """Encode the distinct full captions of the data, which name the style too."""
    captions, targets = unique([row.prompt for row in data.rows])
    return Texts(clip.encode_text(captions)[None], targets)


def noisy(x0: Tensor, angle: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Mix latents (B, C, h, w) with noise at angles (B,); return them with log(α/σ), (B,)."""
    alpha, sigma = angle.cos(), angle.sin()
    mixed = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * noise
    return mixed, alpha.clamp(min=1e-6).log() - sigma.clamp(min=1e-6).log()


class NoisyTowerLoss:
    """Compute the loss of a step.

    Args:
        clip: The teacher, frozen.
        vae: The autoencoder, frozen.
        data: The images, with their names or captions.
        order: The indices of each step's images.
        accelerator: Of the run.
        angle_power: φ/(π/2) is uniform to this power: above 1 more of the clean side.
        distill_weight: Factor of the distillation.
        label_smoothing: Share of the probability that goes to all texts alike.
        random_flip: Mirror each image with probability 1/2, where its row says that it may be.
    """

    def __init__(
        self,
        clip: DualEncoder,
        vae: AutoencoderKL,
        data: CaptionedImages,
        order: SampleOrder,
        accelerator: Accelerator,
        angle_power: float = 1.0,
        distill_weight: float = 1.0,
        label_smoothing: float = 0.05,
        random_flip: bool = False,
    ):
        self.order, self.accelerator, self.angle_power = order, accelerator, angle_power
        self.distill_weight, self.label_smoothing = distill_weight, label_smoothing
        device = accelerator.device
        versions = [data.images, data.images.flip(-1)] if random_flip else [data.images]
        self.latents = torch.stack([encode(vae, images, device) for images in versions])
        self.teacher = torch.stack([clip.encode_image(images).cpu() for images in versions])
        self.mirrors = torch.tensor([row.mirrors for row in data.rows]) & random_flip
        self.texts = [names_of(clip, data), captions_of(clip, data)]

    def __call__(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        device, indices = self.accelerator.device, self.order(step)
        version = (self.mirrors[indices] & (torch.rand(len(indices)) < 0.5)).long()
        x0, teacher = (held[version, indices].to(device) for held in (self.latents, self.teacher))
        # One angle from each of B equal intervals: the same mean as B independent ones, less variance.
        strata = (torch.randperm(len(x0)) + torch.rand(len(x0))) / len(x0)
        angle = (strata**self.angle_power * (math.pi / 2)).to(device)
        found = model(*noisy(x0, angle, torch.randn_like(x0)))
        texts = self.texts[step % len(self.texts)]
        wording = texts.embeds[step // len(self.texts) % len(texts.embeds)].to(device)
        logits = found.logit_scale.exp()[:, None] * found.embeds @ wording.T
        among_texts = F.cross_entropy(logits, texts.targets[indices].to(device), label_smoothing=self.label_smoothing)
        distance = (1 - (found.embeds * teacher).sum(-1)).mean()
        loss = among_texts + self.distill_weight * distance
        return {"loss": loss, "among_texts": among_texts.detach(), "distance": distance.detach()}


class HeldOutRecall:
    """Measure R@1 of unseen images among their names at several noise levels, always with the same noise.

    Args:
        clip: The CLIP whose text tower reads the names.
        vae: The autoencoder.
        data: The images.
        device: Of the tower.
    """

    def __init__(self, clip: DualEncoder, vae: AutoencoderKL, data: CaptionedImages, device: torch.device):
        self.latents, self.names, self.device = encode(vae, data.images, device), names_of(clip, data), device
        self.noise = torch.randn(self.latents.shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def __call__(self, tower: NoisyTower) -> dict[str, float]:
        """Return the shares by the names ``R@1_noise_0.25`` and so on: of noise in the variance."""
        found = {}
        for level in LEVELS:
            angle = torch.tensor(math.asin(math.sqrt(level)))
            embeds = []
            for x0, noise in zip(self.latents.split(256), self.noise.split(256), strict=True):
                read = noisy(x0, angle.expand(len(x0)), noise)
                embeds.append(tower(*(part.to(self.device) for part in read)).embeds.cpu())
            recall = recall_at_k(torch.cat(embeds), self.names.embeds[-1].cpu(), self.names.targets, ks=(1,))
            found[f"R@1_noise_{level:.2f}"] = recall["R@1"]
        return found
