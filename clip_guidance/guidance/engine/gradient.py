"""The gradient of each sample's reward with respect to its predicted clean sample.

The image divides the chain into two: the reward's gradient at the image is gathered first, in parts where the
reward has parts (cutouts in chunks, several rewards), and goes through the decoder once,

    g = (∂image/∂x̂₀)ᵀ Σ_parts ∂r_part/∂image,

so that only one part's activations live at a time beside the decoder's. Rewards are summed over the batch, never
averaged: no sample's gradient depends on its neighbours.

Half precision: gradients of a CLIP logit with respect to a pixel are around 1e-6, below what float16 holds, so
they are scaled by a power of two on the way through float16 networks and back at the end (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.2); everything between the networks is in float32. The power is taken from each sample's
gradient where it enters the decoder or the tower of a CLIP or a loaded reward, so that the size of a reward does not
matter there. Other rewards in float16 are scaled by a constant.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clip_guidance._tensors import per_sample, power_of_two
from clip_guidance.guidance.adapters.call_stack import PipelineCall
from clip_guidance.guidance.engine.decoder import Decoder, at_a_time
from clip_guidance.guidance.modes.base import RewardGradient
from clip_guidance.rewards.protocol import reward_name

_REWARD_SCALE = 2.0**10  # of the gradient inside a float16 reward


def reward_gradient(
    reward: Callable[[Tensor], Tensor], decoder: Decoder, x0: Tensor, call: PipelineCall | None = None
) -> RewardGradient:
    """Compute the gradient of each sample's reward at the clean sample ``x0``, (B, ...).

    Args:
        reward: Maps what the decoder returns to one number per sample, (B,).
        decoder: Maps the clean sample to what the reward reads.
        x0: The clean sample.
        call: The pipeline's call; None in a loop written by hand.

    Raises:
        ValueError: The reward does not return one differentiable number per sample.
    """
    decoder.start_step()
    with torch.enable_grad(), decoder.for_gradients(x0.device):
        x0 = x0.detach().requires_grad_()
        latents = decoder.unpack(x0, call)
        decoder.fit(reward, latents.detach())
        at_latents = _gradient_at_latents(reward, decoder, latents.detach())
        return RewardGradient(vjp(latents, [x0], at_latents.gradient)[0], at_latents.rewards)


def _gradient_at_latents(reward: Callable[[Tensor], Tensor], decoder: Decoder, latents: Tensor) -> RewardGradient:
    count = at_a_time(decoder.decoding, len(latents))
    if count == len(latents):
        leaf = latents.requires_grad_()
        images = decoder.decode(leaf)
        at_images = gradient_at_images(reward, images.detach())
        return RewardGradient(vjp(images, [leaf], at_images.gradient)[0], at_images.rewards)
    # The reward sees the whole batch, whose prompts it counts; the decoder's activations live for a few at a time.
    with torch.no_grad():
        images = torch.cat([decoder.decode(part) for part in latents.split(count)])
    at_images = gradient_at_images(reward, images)
    gradients = []
    for part, cotangent in zip(latents.split(count), at_images.gradient.split(count), strict=True):
        leaf = part.detach().requires_grad_()
        gradients += vjp(decoder.decode(leaf), [leaf], cotangent)
    return RewardGradient(torch.cat(gradients), at_images.rewards)


def vjp(output: Tensor, inputs: Sequence[Tensor], cotangent: Tensor, retain_graph: bool = False) -> list[Tensor]:
    """Compute (∂output/∂input)ᵀ cotangent for each input.

    Inputs and output have the batch as their first dimension. Where a network of half precision may lie between, each
    sample's cotangent is brought to a largest element around 1 on the way and its gradient back to its size, in
    float32 or better.
    """
    if cotangent.dtype == output.dtype and output.dtype == torch.float64:
        return list(torch.autograd.grad(output, inputs, cotangent, retain_graph=retain_graph))
    factor = power_of_two(cotangent)
    gradients = torch.autograd.grad(output, inputs, (cotangent * factor).to(output.dtype), retain_graph=retain_graph)
    return [gradient.to(cotangent.dtype) / per_sample(factor, gradient) for gradient in gradients]


def gradient_at_images(reward: Callable[[Tensor], Tensor], images: Tensor) -> RewardGradient:
    """Compute the reward's gradient at images (B, 3, H, W), videos (B, 3, F, H, W) or latents.

    A video's reward is the mean of its frames' rewards.
    """
    if images.ndim == 5:
        frames = images.transpose(1, 2)
        found = gradient_at_images(reward, frames.flatten(0, 1))
        gradient = found.gradient.unflatten(0, frames.shape[:2]).transpose(1, 2)
        return RewardGradient(gradient / frames.shape[1], found.rewards.unflatten(0, frames.shape[:2]).mean(1))
    scale = _REWARD_SCALE if _has_float16(reward) else 1.0
    leaf = images.requires_grad_()
    gradient, rewards = torch.zeros_like(leaf), leaf.new_zeros(len(leaf))
    for part in parts(reward, leaf):
        _check_rewards(part, len(leaf), reward_name(reward))
        gradient = gradient + torch.autograd.grad(part.sum() * scale, leaf)[0] / scale
        rewards = rewards + part.detach().to(rewards)
    return RewardGradient(gradient, rewards)


def parts(reward: Callable[[Tensor], Tensor], images: Tensor) -> Iterable[Tensor]:
    """Iterate over rewards (B,) whose sum is the reward.

    A reward that has ``parts`` computes each when it is asked for.
    """
    divide: Any = getattr(reward, "parts", None)
    return divide(images) if divide is not None else iter([reward(images)])


def _has_float16(reward: Any) -> bool:
    return isinstance(reward, nn.Module) and any(p.dtype == torch.float16 for p in reward.parameters())


def _check_rewards(rewards: Any, batch: int, name: str) -> None:
    if not isinstance(rewards, Tensor) or rewards.shape != (batch,):
        found = tuple(rewards.shape) if isinstance(rewards, Tensor) else type(rewards).__name__
        raise ValueError(f"the reward {name} must return one number per sample, shape ({batch},), got {found}")
    if not rewards.requires_grad:
        raise ValueError(
            f"the reward {name} must be differentiable in its input; the tensor it returned has no gradient (was it "
            "computed under torch.no_grad, detached, or taken through numpy or PIL?)"
        )
