"""Clean samples, a reward that is not linear, and its gradient through a pipeline's decoder."""

import copy

import torch

from clip_guidance.guidance.engine.decoder import Decoder
from clip_guidance.guidance.engine.gradient import reward_gradient
from clip_guidance.guidance.weights.freeze import freeze_parameters


def latents(count=2, size=(8, 8), dtype=torch.float64, seed=0):
    return torch.randn(count, 4, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def contrast(images):
    """A reward that is not linear, a number an image."""
    return (images[..., 1:] - images[..., :-1]).square().flatten(1).sum(1)


def gradient(pipe, decoding, x0, reward=contrast):
    decoder = Decoder(pipe, "image", decoding)
    with freeze_parameters([decoder.module]):
        return reward_gradient(reward, decoder, x0).gradient


def with_vae(pipe, vae):
    pipe = copy.copy(pipe)
    pipe.vae = vae
    return pipe
