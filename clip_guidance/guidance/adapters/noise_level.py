"""The noise levels at which schedulers take their steps, by family.

A noisy sample is x = α·x₀ + σ·ε. Schedulers keep α and σ in different forms, so they are resolved by family,
from the scheduler's own arrays, never guessed from the timestep:

- variance preserving (DDIM, Song et al. 2021, arXiv:2010.02502): α = √ᾱ_t, σ = √(1 − ᾱ_t);
- variance exploding (Karras et al. 2022, arXiv:2206.00364): α = 1, σ = ``sigmas[i]``;
- DPM-Solver (Lu et al. 2022, arXiv:2211.01095), with s = ``sigmas[i]``: α = 1/√(1 + s²), σ = s·α, or, with
  ``use_flow_sigmas``, α = 1 − s, σ = s;
- flow matching (Lipman et al. 2023, arXiv:2210.02747): α = 1 − σ, σ = ``sigmas[i]``;
- TrigFlow (Lu & Song 2025, arXiv:2410.11081): α = σ_d·cos t, σ = σ_d·sin t. The sample carries σ_d, x₀ does not.

A step of second order calls the model twice, and the second call sees a sample at another level: Heun's at the next
sigma, PNDM's Runge-Kutta's at the timestep that is passed, KDPM2's and DPM-Solver SDE's at a sigma in between. The
noise that Euler's ``s_churn`` adds inside ``step``, after the call of the model, is not counted.

Which scheduler belongs to which family is in :data:`.schedulers.SCHEDULERS`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_NO_SIGNAL = 2**-10  # of α/σ: a terminal signal-to-noise ratio of zero is written as 0, as ᾱ = 5e-7 or as α/σ = 2⁻¹²


@dataclass(frozen=True)
class NoiseLevel:
    """Hold the coefficients of x = alpha·x₀ + sigma·ε, where x is the ``sample`` of a step.

    Attributes:
        alpha: Weight of the clean sample, in [0, 1].
        sigma: Weight of the noise, at least 0.
        timestep: Timestep of the step, where the next step (DDIM) or the weights of the model output (LCM) depend
            on it.
        of_consistency: Whether the scheduler's models are consistency functions: x̂₀ is then where the sample's
            trajectory ends, not the mean of what it may have been.
    """

    alpha: float
    sigma: float
    timestep: float | None = field(default=None, compare=False)
    of_consistency: bool = field(default=False, compare=False)

    @property
    def has_signal(self) -> bool:
        """Whether the sample holds anything of x₀; if not, nothing that is divided by alpha means anything."""
        return self.alpha > _NO_SIGNAL * self.sigma


#: From a scheduler and the timestep of a step to the noise level before the step.
LevelRule = Callable[[Any, float | Tensor], NoiseLevel]


class UnsupportedSchedulerError(ValueError):
    """Report a scheduler whose noise levels or prediction type are unknown or unsupported.

    The message names the scheduler, the reason or what is known instead, and how to exchange the scheduler.
    ``attach`` raises the error before the pipeline is changed.

    Example:
        >>> from types import SimpleNamespace
        >>> import torch, clip_guidance as cg
        >>> class OwnScheduler: ...
        >>> pipe = SimpleNamespace(scheduler=OwnScheduler(), unet=torch.nn.Identity())
        >>> with cg.Guidance(lambda x: x.mean((1, 2, 3)), space="latent").attach(pipe):
        ...     pass
        Traceback (most recent call last):
        clip_guidance...UnsupportedSchedulerError: guidance knows the noise levels of ...
    """


def step_index(scheduler: Any, timestep: float | Tensor) -> int:
    """Find the position of ``timestep`` in ``scheduler.timesteps`` as ``step`` counts it.

    Before the first step ``scheduler.step_index`` is still None; the result is what the scheduler would set it to.
    For schedulers that keep no index (DDIM) the nearest timestep is taken. PNDM's timesteps repeat; the counter of
    the scheduler tells them apart, so that the index grows from call to call.

    Raises:
        UnsupportedSchedulerError: The samples of the batch are at different timesteps.
    """
    for name in ("step_index", "begin_index"):
        if (index := getattr(scheduler, name, None)) is not None:
            return int(index)
    timesteps, timestep = scheduler.timesteps, shared_timestep(timestep)
    if hasattr(scheduler, "index_for_timestep"):
        timestep = timestep.to(timesteps.device) if isinstance(timestep, Tensor) else timestep
        return int(scheduler.index_for_timestep(timestep))
    distances = (timesteps.to("cpu", torch.float64) - float(timestep)).abs()
    nearest = (distances == distances.min()).nonzero().flatten().tolist()
    counter = getattr(scheduler, "counter", None)
    if counter is None:
        return nearest[0]
    if counter in nearest:
        return int(counter)
    # PNDM that began inside its timesteps (image to image) counts from there. The calls of a Runge-Kutta step take
    # turns at two equal timesteps; counter 0 goes before both, as counter 1 may be the first of the same two.
    if counter == 0:
        return nearest[0] - (len(nearest) - 1)
    return next((index for index in nearest if (index - counter) % 2 == 0), nearest[0])


def shared_timestep(timestep: float | Tensor) -> float | Tensor:
    """Return the timestep that all samples of a batch share.

    Raises:
        UnsupportedSchedulerError: The timesteps differ.
    """
    if not isinstance(timestep, Tensor) or timestep.ndim == 0:
        return timestep
    if (timestep != timestep.flatten()[0]).any():
        raise UnsupportedSchedulerError(f"guidance needs one timestep for the whole batch, got {timestep.tolist()}")
    return timestep.flatten()[0]


def variance_preserving(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    """Return α = √ᾱ_t, σ = √(1 − ᾱ_t)."""
    timestep = int(shared_timestep(timestep))
    return from_product(float(scheduler.alphas_cumprod[timestep]), timestep)


def from_product(alpha_prod: float, timestep: float | None = None) -> NoiseLevel:
    """Return α = √ᾱ, σ = √(1 − ᾱ); an ᾱ outside of [0, 1] makes one of them negative, and no noise level."""
    return NoiseLevel(_root(alpha_prod), _root(1 - alpha_prod), timestep)


def _root(x: float) -> float:
    """Return the root, 0 of what is rounded below 0, and of other negative numbers the negative root."""
    return 0.0 if abs(x) < 1e-7 and x < 0 else math.copysign(math.sqrt(abs(x)), x)


def wuerstchen(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    """Return α = √ᾱ, σ = √(1 − ᾱ), with ᾱ a function of a continuous timestep.

    Of the public methods only ``add_noise`` computes the function.
    """
    one, ratio = torch.ones(1), torch.tensor([float(shared_timestep(timestep))])
    alpha = float(scheduler.add_noise(one, torch.zeros(1), ratio))
    return NoiseLevel(alpha, from_product(alpha**2).sigma)


def rotation(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    """Return α = ``alphas[i]``, σ = ``betas[i]``, as IPNDM names them."""
    index = step_index(scheduler, timestep)
    return NoiseLevel(float(scheduler.alphas[index]), float(scheduler.betas[index]))


def variance_exploding(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    """Return α = 1, σ = ``sigmas[i]``."""
    return NoiseLevel(1.0, float(scheduler.sigmas[step_index(scheduler, timestep)]))


def with_midpoint(midpoint: Callable[[Any, int], Tensor]) -> LevelRule:
    """Make the rule of variance exploding steps of second order.

    Args:
        midpoint: From (scheduler, index) to the sigma at which the second call of a step is made.
    """

    def resolve(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
        if scheduler.state_in_first_order:
            return variance_exploding(scheduler, timestep)
        return NoiseLevel(1.0, float(midpoint(scheduler, step_index(scheduler, timestep))))

    return resolve


def dpm_solver(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    """Return α = 1/√(1 + s²), σ = s·α; with ``use_flow_sigmas`` α = 1 − s, σ = s = sigmas[i]."""
    ratio = float(scheduler.sigmas[step_index(scheduler, timestep)])
    if scheduler.config.use_flow_sigmas:
        return NoiseLevel(1 - ratio, ratio)
    alpha = 1 / math.sqrt(1 + ratio**2)
    return NoiseLevel(alpha, ratio * alpha)


def flow(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    """Return α = 1 − σ, σ = ``sigmas[i]``, or the reverse with ``invert_sigmas``."""
    sigma = float(scheduler.sigmas[step_index(scheduler, timestep)])
    if getattr(scheduler.config, "invert_sigmas", False):  # Mochi: sigmas rise from 0 at pure noise to 1
        return NoiseLevel(sigma, 1 - sigma)
    return NoiseLevel(1 - sigma, sigma)


def trigflow(scheduler: Any, timestep: float | Tensor) -> NoiseLevel:
    """Return α = σ_d·cos t, σ = σ_d·sin t."""
    angle = float(scheduler.timesteps[step_index(scheduler, timestep)])
    sigma_data = scheduler.config.sigma_data
    return NoiseLevel(sigma_data * math.cos(angle), sigma_data * math.sin(angle))
