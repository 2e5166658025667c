"""Sampling a Gaussian with its ideal denoiser through any scheduler of diffusers: the ground of the oracle tests.

Data N(MEAN, STD²) with the linear reward r(x₀) = TILT·x₀ is tilted to N(TILTED_MEAN, STD²), and E[x₀ | x] is known
for both. Nothing here reads clip_guidance's noise levels: the denoiser's come from the scheduler's own ``add_noise``
or from the formula of its paper.
"""

import copy
import inspect
import math
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import nn

from clip_guidance.guidance import Guidance

MEAN, STD, TILT = 0.3, 0.8, 1.5
TILTED_MEAN = MEAN + TILT * STD**2  # 1.26


def peer_level(scheduler, index, t):
    """(α, σ) of the sample that step ``index`` is about to receive, as the scheduler's own code has it."""
    name, one, none = type(scheduler).__name__, torch.ones(1), torch.zeros(1)
    if name == "IPNDMScheduler":  # a rotation; α and σ are called alphas and betas
        return scheduler.alphas[index].item(), scheduler.betas[index].item()
    if name == "SASolverScheduler":  # its add_noise knows no spacing of sigmas, its step does
        return tuple(level.item() for level in scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[index]))
    if name == "SCMScheduler":  # equation 5 of arXiv:2410.11081
        sigma_data = scheduler.config.sigma_data
        return sigma_data * abs(math.cos(t)), sigma_data * math.sin(t)
    if name == "LTXEulerAncestralRFScheduler" or scheduler.config.get("invert_sigmas"):
        sigma = float(t) / 1000
        return (sigma, 1 - sigma) if scheduler.config.get("invert_sigmas") else (1 - sigma, sigma)
    peer = copy.copy(scheduler)
    if not getattr(scheduler, "state_in_first_order", True) and not hasattr(scheduler, "prev_derivative"):
        return 1.0, (1 / peer.scale_model_input(one, t).double() ** 2 - 1).sqrt().item()  # a sigma in between
    peer._begin_index, peer._step_index = 0, index
    if hasattr(scheduler, "add_noise"):
        return peer.add_noise(one, none, t[None]).item(), peer.add_noise(none, one, t[None]).item()
    return peer.scale_noise(one, t[None], none).item(), peer.scale_noise(none, t[None], one).item()


#: Schedulers whose models are consistency functions: x₀ is the end of the trajectory of the probability flow.
CONSISTENCY = ("LCMScheduler", "FlowMatchLCMScheduler", "CMStochasticIterativeScheduler", "SCMScheduler")


class GaussianDenoiser(nn.Module):
    """E[x₀ | x] for N(mean, std²) data, as any prediction, from the input that a network would receive.

    For schedulers of consistency functions it is that function: by the flow of a Gaussian (x − αμ)/√(α²s² + σ²) is
    constant, and at the end it is (x₀ − μ)/s.
    """

    def __init__(self, scheduler, prediction):
        super().__init__()
        self.scheduler, self.prediction, self.mean, self.std = scheduler, prediction, MEAN, STD
        self.level = None

    def to_sample(self, x):
        """From the network's input to the noisy sample, by the formulae of Karras et al. 2022."""
        name, (alpha, sigma) = type(self.scheduler).__name__, self.level
        if name == "SCMScheduler":
            return x * self.scheduler.config.sigma_data
        if name.startswith("EDM") or name in ("CosineDPMSolverMultistepScheduler", "CMStochasticIterativeScheduler"):
            return x * math.hypot(sigma, self.scheduler.config.sigma_data)
        return x * math.hypot(sigma, 1) if alpha == 1 else x

    def gain(self):
        """g in x̂₀ = μ + g·(x − αμ)."""
        alpha, sigma = self.level
        if type(self.scheduler).__name__ in CONSISTENCY:
            return self.std / math.hypot(alpha * self.std, sigma)
        return alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)

    def clean(self, x):
        return self.mean + self.gain() * (x - self.level[0] * self.mean)

    def forward(self, x, t):
        x = self.to_sample(x)
        x0, (alpha, sigma), norm = self.clean(x), self.level, math.hypot(*self.level)
        epsilon = (x - alpha * x0) / sigma
        if self.prediction in ("edm_epsilon", "edm_v", "consistency"):
            c_skip, c_out = self.preconditioning(sigma)
            return (x0 - c_skip * x) / c_out
        return {
            "epsilon": epsilon,
            "v_prediction": (alpha * epsilon - sigma * x0) / norm,
            "trigflow": alpha * epsilon - sigma * x0,
            "flow_prediction": epsilon - x0,
            "reversed_flow": x0 - epsilon,
            "sample": x0,
        }[self.prediction]

    def preconditioning(self, sigma):
        """c_skip and c_out: table 1 of arXiv:2206.00364; with the boundary of arXiv:2303.01469, appendix C."""
        config = self.scheduler.config
        low = config.sigma_min if self.prediction == "consistency" else 0
        c_skip = config.sigma_data**2 / ((sigma - low) ** 2 + config.sigma_data**2)
        c_out = (sigma - low) * config.sigma_data / math.hypot(sigma, config.sigma_data)
        return c_skip, -c_out if self.prediction == "edm_v" else c_out


def set_timesteps(scheduler, steps):
    """The timesteps that a pipeline calls ``step`` with."""
    name = type(scheduler).__name__
    options = {"intermediate_timesteps": None} if name == "SCMScheduler" else {}
    if scheduler.config.get("use_dynamic_shifting"):
        options["mu"] = 0.9
    scheduler.set_timesteps(steps + (name == "MiniMaxH3Scheduler"), **options)
    return scheduler.timesteps[:-1] if name in ("SCMScheduler", "DDPMWuerstchenScheduler") else scheduler.timesteps


def initial(scheduler, count):
    """``count`` noisy samples of mean 0 and the right standard deviation, in float64."""
    x = torch.randn(count, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x - x.mean()) / x.std(correction=0)
    name = type(scheduler).__name__
    if name == "SCMScheduler":
        return x * scheduler.config.sigma_data
    if name == "CosineDPMSolverMultistepScheduler" or name.startswith("EDM"):
        return x * scheduler.config.sigma_max
    return x * getattr(scheduler, "init_noise_sigma", 1.0)


def final_alpha(scheduler):
    """α of the level that a run ends with. Some schedulers stop at their smallest sigma."""
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        return float(scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[-1])[0])
    return float(getattr(scheduler, "final_alpha_cumprod", 1.0)) ** 0.5


@contextmanager
def watched(scheduler, look):
    """Inside, ``look(step, output, t, x)`` stands in for ``scheduler.step``; ``step(output)`` is that itself."""
    own, signature = scheduler.step, inspect.signature(scheduler.step)

    def replacement(*args, **kwargs):
        call = signature.bind(*args, **kwargs)

        def step(output):
            call.arguments["model_output"] = output
            return own(*call.args, **call.kwargs)

        return look(step, *(call.arguments[name] for name in ("model_output", "timestep", "sample")))

    scheduler.step = replacement
    try:
        yield
    finally:
        del scheduler.step


def stepper(scheduler, timesteps):
    """``scheduler.step`` as the scheduler's own pipeline calls it: (index, output, t, x) -> next x."""
    name, memory = type(scheduler).__name__, {}

    def cog_video_dpm(i, output, t, x):
        back = timesteps[i - 1] if i else None
        x, memory["x0"] = scheduler.step(output, memory.get("x0"), t, back, x, return_dict=False)
        return x

    def un_clip(i, output, t, x):
        following = timesteps[i + 1] if i + 1 < len(timesteps) else None
        return scheduler.step(output, t, x, prev_timestep=following).prev_sample

    if name == "CogVideoXDPMScheduler":
        return cog_video_dpm
    if name == "UnCLIPScheduler":
        return un_clip
    if name == "DDPMWuerstchenScheduler":
        return lambda i, output, t, x: scheduler.step(output, t.expand(len(x)), x).prev_sample
    if name == "CosineDPMSolverMultistepScheduler":
        generator = torch.Generator().manual_seed(0)
        return lambda i, output, t, x: scheduler.step(output, t, x, generator=generator).prev_sample
    return lambda i, output, t, x: scheduler.step(output, t, x).prev_sample


def sample(pipe, steps, start=0.0, noise=None):
    """Clean samples, of ``noise`` or of two; the noise that a scheduler draws is the same at every call.

    Pipelines start from noise of mean 0. That of data of mean m at the first level has the mean α·m: ``start`` is m.
    """
    scheduler, denoiser = pipe.scheduler, pipe.unet
    timesteps = set_timesteps(scheduler, steps)
    step, x = stepper(scheduler, timesteps), initial(scheduler, count=2) if noise is None else noise
    x = x + start * peer_level(scheduler, 0, timesteps[0])[0]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for i, t in enumerate(timesteps):
            denoiser.level = peer_level(scheduler, i, t)
            if type(scheduler).__name__ == "SCMScheduler":
                model_input = x / scheduler.config.sigma_data  # its pipeline does it
            else:
                model_input = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = step(i, denoiser(model_input, t), t, x)
    return x.flatten() / (scheduler.config.sigma_data if type(scheduler).__name__ == "SCMScheduler" else 1)


def tilt(x):
    return TILT * x.flatten(1).sum(1)


def guided(pipe, steps, start=0.0, **options):
    """As :func:`sample`, from the tilted distribution."""
    with Guidance(tilt, **{"space": "latent", "data_variance": STD**2, **options}).attach(pipe):
        return sample(pipe, steps, start)


def centered(pipe, steps):
    """Samples of N(0, STD²) data with the same noise. Their expectation is 0, so they take the noise out of a mean."""
    pipe.unet.mean = 0.0
    try:
        return sample(pipe, steps)
    finally:
        pipe.unet.mean = MEAN


def make_pipe(setting):
    scheduler = setting.make()
    return SimpleNamespace(scheduler=scheduler, unet=GaussianDenoiser(scheduler, setting.prediction))
