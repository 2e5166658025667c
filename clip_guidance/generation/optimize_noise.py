"""Noise optimisation: gradient ascent on the initial noise of a pipeline of a few steps.

ReNO (Eyring et al. 2024, arXiv:2406.04312) for any pipeline and reward: with the images G(z) of noise z of d elements,

    z*  =  argmax over z of r(G(z)) + λ·log p(‖z‖),    log p(‖z‖) = (d − 1)·log ‖z‖ − ‖z‖²/2 + const,

where p is the density of a Gaussian's norm, the chi distribution's: the noise stays of the size that the model knows.
The ascent is that of stochastic gradient descent with Nesterov's momentum, along gradients of at most a given length.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clip_guidance._display import DisplayMixin
from clip_guidance._tensors import per_sample
from clip_guidance.generation.differentiable import DifferentiableCall
from clip_guidance.guidance.arguments import check_number
from clip_guidance.guidance.checks import as_whole
from clip_guidance.guidance.engine.gradient import gradient_at_images, parts, vjp
from clip_guidance.guidance.modes.base import RewardGradient
from clip_guidance.guidance.per_sample import are_finite
from clip_guidance.guidance.weights.freeze import freeze_parameters
from clip_guidance.rewards.protocol import Reward, as_steering, reward_name


@dataclass(frozen=True)
class OptimizedNoise(DisplayMixin):
    """Hold what noise optimisation found; a notebook shows the images with their rewards.

    Attributes:
        images: The image of the best noise of each, as the pipeline returns it.
        rewards: Reward of each image at its best noise, the best of ``history``.
        latents: The best noise of each image, (B, ...): ``pipe(latents=found.latents, ...)`` with the same arguments,
            and a generator of the same seed for what a scheduler adds, draws the images again.
        history: Rewards of all images before the first ascent and after each, (steps + 1, B).
        evaluations: Number of times that each image was drawn.
        seconds: Seconds that the whole search took.
    """

    images: list[Any]
    rewards: list[float]
    latents: Tensor
    history: Tensor
    evaluations: int
    seconds: float


def optimize_noise(
    pipe: Any,
    reward: Reward,
    steps: int = 50,
    *,
    seed: int = 0,
    learning_rate: float = 5.0,
    momentum: float = 0.9,
    clip: float = 0.1,
    prior: float = 0.01,
    max_steps: int = 8,
    **call: Any,
) -> OptimizedNoise:
    """Raise a reward by gradient ascent on the initial noise of a few-step pipeline, as ReNO does.

    The gradient passes through the whole call: decoder, every step, and every pass of the denoiser, whose activations
    are all kept. Each image of a batch is optimised on its own. The defaults are the paper's.

    Args:
        pipe: A pipeline of diffusers that takes ``latents``, such as a turbo, LCM, TCD or schnell model's; or any
            callable with ``latents``, ``generator`` and ``output_type``, whose result has ``images``.
        reward: A differentiable function of images (B, 3, H, W) in [0, 1] to one number each, or an object with
            ``score(images, prompts)``, such as what ``load_reward`` returns.
        steps: Number of ascents, at least 1; each costs a run of the pipeline and its backward, beside two more runs.
        seed: Seed of the noise to begin with, and, from its start again in each run, of what the scheduler adds.
        learning_rate: Length of an ascent per length of its gradient, above 0.
        momentum: Nesterov's momentum, at least 0.
        clip: Greatest length of the gradient of each image, above 0.
        prior: Weight λ of the norm's log density, at least 0; 0 lets the noise grow.
        max_steps: Most steps of the scheduler that are differentiated through; memory grows with each.
        call: Arguments of the pipeline, ``prompt`` and so on; ``latents`` to begin with other noise.

    Returns:
        The best noise of each image, by the reward alone, with its image.

    Raises:
        TypeError: ``reward`` is none, or ``call`` has an argument that the search sets.
        ValueError: The reward, the denoiser or the scheduler lets no gradient pass; the run has too many steps; or an
            argument is out of range.

    Example:
        >>> import clip_guidance as cg
        >>> pipe = cg.load_pipeline("emoji")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> call = {"prompt": "an apple", "num_inference_steps": 1, "height": 32, "width": 32}
        >>> found = cg.optimize_noise(pipe, lambda images: images[:, 0].mean((1, 2)), steps=2, **call)
        >>> found.history.shape, found.rewards[0] == found.history.max()
        (torch.Size([3, 1]), tensor(True))
    """
    steps, max_steps = as_whole("steps", steps, "at least 1", 1), as_whole("max_steps", max_steps, "at least 1", 1)
    for name, value, least in (("learning_rate", learning_rate, 1e-9), ("clip", clip, 1e-9), ("prior", prior, 0.0)):
        check_number(name, value, least)
    check_number("momentum", momentum, 0.0)
    started, draw = time.perf_counter(), DifferentiableCall(pipe, call, seed, max_steps)
    own_prompts = getattr(reward, "prompts", None) is not None
    steering = as_steering(reward, None if own_prompts else call.get("prompt"))
    optimizer = partial(torch.optim.SGD, lr=learning_rate, momentum=momentum, nesterov=momentum > 0)
    best = _ascended(steering, draw, steps, optimizer, clip, prior)
    images, seconds = draw.final(best.noise), time.perf_counter() - started
    return OptimizedNoise(images, best.rewards.tolist(), best.noise, torch.stack(best.history), steps + 1, seconds)


@dataclass
class _Best:
    """Hold the best noise of each image so far, (B, ...), its reward, (B,), and all rewards."""

    noise: Tensor
    rewards: Tensor
    history: list[Tensor] = field(default_factory=list)

    def note(self, rewards: Tensor, noise: Tensor) -> None:
        better = rewards > self.rewards  # false of what is not finite
        self.noise = torch.where(per_sample(better, noise), noise.detach(), self.noise)
        self.rewards = torch.where(better, rewards.to(self.rewards), self.rewards)
        self.history.append(rewards.cpu())


def _ascended(
    reward: Any, draw: DifferentiableCall, steps: int, optimizer: partial[torch.optim.SGD], clip: float, prior: float
) -> _Best:
    """Rate the initial noise and that after each ascent; return the best of each image."""
    networks = [reward] if isinstance(reward, nn.Module) else []
    with freeze_parameters(networks), draw.prepared(), torch.enable_grad():
        noise = draw.initial_noise().clone().requires_grad_()
        sgd = optimizer([noise])
        best = _Best(noise.detach().clone(), noise.new_full((len(noise),), -torch.inf))
        for _ in range(steps):
            found = _gradient(reward, draw, noise)
            best.note(found.rewards, noise)
            noise.grad = -_clipped(found.gradient + prior * _norm_score(noise.detach()), clip)
            sgd.step()
        best.note(_rewards(reward, draw, noise), noise)
    _warn(torch.stack(best.history), reward)
    return best


def _gradient(reward: Any, draw: DifferentiableCall, noise: Tensor) -> RewardGradient:
    """Compute the rewards of the images of ``noise``, and their gradient at it.

    Raises:
        ValueError: The reward is not differentiable.
    """
    getattr(reward, "reset", lambda: None)()  # random crops are the same in all runs
    images = draw(noise)
    try:
        at_images = gradient_at_images(reward, images.detach())
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"optimize_noise needs a reward that is differentiable in images (B, 3, H, W): {str(error)[:130]}. "
            "best_of, Particles and AdaptiveCFG need no gradient"
        ) from error
    return RewardGradient(vjp(images, [noise], at_images.gradient)[0], at_images.rewards)


@torch.no_grad()
def _rewards(reward: Any, draw: DifferentiableCall, noise: Tensor) -> Tensor:
    getattr(reward, "reset", lambda: None)()
    images, total = draw(noise), noise.new_zeros(len(noise))
    for part in parts(reward, images):
        total = total + part.to(total)
    return total


def _norm_score(noise: Tensor) -> Tensor:
    """Compute ∇ log p(‖z‖) = z·((d − 1)/‖z‖² − 1) of each image's noise (B, ...)."""
    squared = noise.flatten(1).square().sum(1)
    return per_sample((noise[0].numel() - 1) / squared - 1, noise) * noise


def _clipped(gradient: Tensor, length: float) -> Tensor:
    """Shorten each image's gradient to ``length``; one that is not finite becomes 0."""
    gradient = torch.where(per_sample(are_finite(gradient), gradient), gradient, 0)
    norm = gradient.flatten(1).norm(dim=1)
    return per_sample((length / norm.clamp(min=length)), gradient) * gradient


def _warn(history: Tensor, reward: Any) -> None:
    if lost := int((~history.isfinite()).sum()):
        warnings.warn(
            f"{lost} of {history.numel()} rewards of {reward_name(reward)} were not finite; the best of the others "
            "counts",
            stacklevel=4,
        )
