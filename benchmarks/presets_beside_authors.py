r"""Compare the methods of the papers with the program of TFG's authors, which holds them all, trajectory by trajectory.

    git clone https://github.com/YWolfeee/Training-Free-Guidance
    python benchmarks/presets_beside_authors.py --checkout Training-Free-Guidance

Both are given one closed-form denoiser, that of a mixture of two Gaussians, one reward, and the same draws of noise, in
float64. Only the checkout's ``methods`` are imported; of what they import, the loading of data and of networks is left
out. The last column is the largest difference anywhere on the trajectories, relative to the largest element. A row
with a remark of "as it stands" gives both the same numbers although the two mean something else by them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from clip_guidance.guidance import Guidance
from clip_guidance.guidance.methods import DPS, LGDMC, MPGD, TFG, UniversalGuidance, recurrent
from clip_guidance.guidance.methods.smoothing import draw_noise
from clip_guidance.training.settings import parse_settings

STEPS, SHAPE, SEED = 10, (2, 3, 4, 4), 3
STD, MODE = 0.4, torch.randn(SHAPE[1:], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
TARGET = torch.randn(SHAPE[1:], generator=torch.Generator().manual_seed(6), dtype=torch.float64)


@dataclass(frozen=True)
class Settings:
    """Where the authors' program lies, and where the table goes."""

    checkout: str = "Training-Free-Guidance"  # folder of the repository
    output: str = "benchmarks/presets_beside_authors.md"  # Markdown file for the table


@dataclass(frozen=True)
class Pair:
    """One row: a method there, with its arguments, and here."""

    name: str  # of the file and the class there
    arguments: dict[str, Any]
    mode: Any  # None for none
    remark: str = ""
    reward: Callable[[Tensor], Tensor] | None = None  # here, where it is not the one there
    schedule: Callable[[float], float] | None = None
    clip_sample: bool = False


def reward(x: Tensor) -> Tensor:
    """Return the negative residual of an operator that is not linear, (B,)."""
    return -0.05 * ((1.5 * x).sin() + 0.3 * x.roll(1, -1) - TARGET).flatten(-3).norm(dim=-1) - 0.5


def make_scheduler(clip_sample: bool = False) -> DDIMScheduler:
    """Make the scheduler with tables of float64: rounded to float32 as they are, they are the same to both."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=clip_sample
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    return scheduler


class Denoiser(nn.Module):
    """ε̂ of data ½N(m, s²) + ½N(−m, s²), where m is an image."""

    def __init__(self, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.alphas_cumprod = alphas_cumprod

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        product = self.alphas_cumprod[timestep]
        alpha, variance = product.sqrt(), product * STD**2 + 1 - product
        side = (alpha / variance * (x * MODE).flatten(1).sum(1)).tanh().view(-1, 1, 1, 1)
        x0 = (alpha * STD**2 * x + (1 - product) * side * MODE) / variance
        return (x - alpha * x0) / (1 - product).sqrt()


def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# ---------------------------------------------------------------- theirs


def import_methods(checkout: Path) -> None:
    """Make the checkout's ``methods`` importable without the data and the networks of its tasks."""
    if not (checkout / "methods" / "tfg.py").is_file():
        raise FileNotFoundError(f"expected a checkout of Training-Free-Guidance with methods/tfg.py, got {checkout}")
    left_out: dict[str, dict[str, Any]] = {
        "tasks": {},
        "tasks.base": {"BaseGuider": Guider},
        "tasks.utils": {"rescale_grad": lambda gradient, **options: gradient},  # it acts on molecules alone
        "utils": {},
        "utils.configs": {"Arguments": SimpleNamespace},
    }
    for name, members in left_out.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(members)
    sys.path.insert(0, str(checkout))


class Guider:
    """What their methods ask for the reward."""

    def __init__(self, arguments: Any) -> None: ...

    @torch.enable_grad()
    def get_guidance(
        self, x: Tensor, func: Callable = lambda x: x, return_logp: bool = False, check_grad: bool = True
    ) -> Tensor:
        rewards = reward(func(x))
        return rewards if return_logp else torch.autograd.grad(rewards.sum(), x)[0]


class Draws:
    """The draws of a run, in the order in which they are made here: the sampler's, recurrence's, and the copies'."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.step, self.again = scheduler, torch.Generator().manual_seed(1), torch.Generator()
        self.again.manual_seed(0)
        self.putting_back = False

    def begin(self, timestep: int, repetition: int, repetitions: int, samples: int) -> None:
        """Draw the copies of one repetition of a step."""
        self.is_last = repetition + 1 == repetitions
        taken = SimpleNamespace(timesteps=torch.full((repetitions,), timestep), step_index=repetition)
        state: Any = SimpleNamespace(level=SimpleNamespace(timestep=timestep), scheduler=taken, x0=start())
        self.copies = iter(draw_noise(state, samples, SEED))

    def __call__(self, x: Tensor, sigma: Tensor, **options: Any) -> Tensor:
        """Add noise, as their ``noise_fn``: to nothing for a copy."""
        if self.putting_back:
            noise = torch.zeros(SHAPE) if self.is_last else torch.randn(SHAPE, generator=self.again)
        elif not x.any():
            noise = next(self.copies).expand(SHAPE)
        else:
            noise = torch.randn(SHAPE, generator=self.step, dtype=torch.float64)
        return x + sigma * noise.double()


def theirs(pair: Pair, eta: float) -> Tensor:
    """Return x_{t−1} of every step, (T, B, ...)."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(STEPS)
    times = pair.arguments.get("recur_steps", 1)
    samples = pair.arguments.get("eps_bsz", int(pair.arguments.get("guidance_name", "_1").split("_")[1]))
    defaults = {"recur_steps": 1, "iter_steps": 1, "sigma_schedule": "decrease", "eps_bsz": 1, "clip_sample_range": 1.0}
    arguments = SimpleNamespace(
        **{**defaults, "rho_schedule": "constant", "clip_x0": False, "clip_scale": 100.0, **pair.arguments},
        device="cpu",
        seed=SEED,
    )
    draws = Draws(scheduler)
    file, class_name = pair.name.split(".")
    method = getattr(importlib.import_module(f"methods.{file}"), class_name)(arguments, noise_fn=draws)
    put_back = method._predict_xt
    timestep, taken = 0, 0

    def predict_xt(*given: Any, **options: Any) -> Tensor:
        nonlocal taken
        draws.putting_back = True
        x = put_back(*given, **options)
        draws.putting_back, taken = False, taken + 1
        if taken < times:
            draws.begin(timestep, taken, times, samples)
        return x

    method._predict_xt = predict_xt
    bars = scheduler.alphas_cumprod[scheduler.timesteps]
    following = torch.cat([bars[1:], scheduler.final_alpha_cumprod.view(1)])
    x, path = start(), []
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        for index, each in enumerate(scheduler.timesteps):
            timestep, taken = int(each), 0
            draws.begin(timestep, 0, times, samples)
            unet = Denoiser(scheduler.alphas_cumprod)
            x = method.guide_step(x, index, unet, scheduler.timesteps, bars, following, eta)
            path.append(x)
    return torch.stack(path)


# ---------------------------------------------------------------- ours


def ours(pair: Pair, eta: float) -> Tensor:
    """Return x_{t−1} of every step, (T, B, ...), through the plug-in and a stock scheduler."""
    scheduler, times = make_scheduler(pair.clip_sample), pair.arguments.get("recur_steps", 1)
    pipe = SimpleNamespace(scheduler=scheduler, unet=Denoiser(scheduler.alphas_cumprod))
    options = {"mode": pair.mode, "space": "latent", "schedule": pair.schedule}
    guided = Guidance(pair.reward or reward, **options).attach(pipe) if pair.mode else contextlib.nullcontext()
    x, path, generator = start(), {}, torch.Generator().manual_seed(1)
    with guided, recurrent(scheduler, times), torch.no_grad():
        scheduler.set_timesteps(STEPS)
        for timestep in scheduler.timesteps:
            output = pipe.unet(x, timestep)
            x = scheduler.step(output, timestep, x, eta=eta, generator=generator).prev_sample
            path[int(timestep)] = x  # of the last repetition
    return torch.stack(list(path.values()))


def increasing(fraction: float) -> float:
    """Return their schedule "increase", T·α_t/Σα, at a fraction of the run."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(STEPS)
    bars = scheduler.alphas_cumprod[scheduler.timesteps]
    alphas = bars / torch.cat([bars[1:], torch.ones(1)])
    return float(alphas[round(fraction * STEPS)] / alphas.mean())


TFG_THERE = {"rho": 2.0, "mu": 0.5, "sigma": 0.6, "eps_bsz": 3, "iter_steps": 3, "recur_steps": 2} | {
    "rho_schedule": "increase",
    "mu_schedule": "decrease",
}
TFG_HERE = TFG(2.0, 0.5, sigma=0.6, samples=3, iterations=3, mu_schedule="decrease", seed=SEED)
STRENGTH = {"guidance_strength": 4.0}
FREEDOM = STRENGTH | {"recur_steps": 3}
PAIRS = [
    Pair("dps.DPSGuidance", STRENGTH, DPS(4.0), "reward here: −log(−r)", lambda x: -(-reward(x)).log()),
    Pair("dps.DPSGuidance", STRENGTH, DPS(4.0), "as it stands: divided by abs(r) there"),
    Pair("lgd.LGDGuidance", STRENGTH | {"guidance_name": "lgd_1"}, LGDMC(4.0, 1, seed=SEED)),
    Pair(
        "lgd.LGDGuidance", {"guidance_strength": 16.0, "guidance_name": "lgd_4"}, LGDMC(4.0, 4, seed=SEED), "n·ζ there"
    ),
    Pair(
        *("lgd.LGDGuidance", STRENGTH | {"guidance_name": "lgd_4"}, LGDMC(4.0, 4, seed=SEED)),
        "as it stands: divided by n there",
    ),
    Pair("freedom.FreedomGuidance", FREEDOM, DPS(4.0), "a constant ρ is DPS"),
    Pair(
        *("freedom.FreedomGuidance", FREEDOM | {"rho_schedule": "increase"}, DPS(4.0), "with `schedule=`"),
        schedule=increasing,
    ),
    Pair("mpgd.MPGDGuidance", {"guidance_strength": 2.0}, MPGD(2.0)),
    Pair(
        *("ugd.UGDGuidance", {"guidance_strength": 2.0, "iter_steps": 4, "recur_steps": 3}),
        *(UniversalGuidance(2.0, 3, 2.0), "`iter_steps` is m + 1"),
    ),
    Pair("tfg.TFGGuidance", TFG_THERE | {"sigma": 0.0}, replace(TFG_HERE, sigma=0.0)),
    Pair("tfg.TFGGuidance", TFG_THERE, TFG_HERE),
    Pair(
        *("tfg.TFGGuidance", TFG_THERE | {"clip_x0": True}, TFG_HERE),
        "as it stands: there x̂₀ is clipped before Δ is added, here (`clip_sample`) after",
        clip_sample=True,
    ),
]


def main(settings: Settings) -> None:
    import_methods(Path(settings.checkout))
    rows = []
    for pair in PAIRS:
        for eta in (0.0, 1.0):
            expected, found = theirs(pair, eta), ours(pair, eta)
            unguided = ours(replace(pair, mode=None), eta)
            moved, difference = ((each - expected).abs().max() / expected.abs().max() for each in (unguided, found))
            there = ", ".join(f"{name} {value}" for name, value in pair.arguments.items())
            row = (
                f"{pair.name}: {there}",
                f"`{pair.mode}`",
                pair.remark,
                f"{eta:g}",
                f"{moved:.2f}",
                f"{difference:.0e}",
            )
            rows.append(f"| {' | '.join(row)} |")
            print(rows[-1])
    text = (
        "The methods of the papers beside the program of TFG's authors (github.com/YWolfeee/Training-Free-Guidance): "
        f"{STEPS} steps of DDIM on a mixture of two Gaussians with the same noise, in float64. Moved is how far "
        "guidance leads from the unguided trajectory, difference how far the two lie apart, both relative to the "
        'largest element. A remark of "as it stands" means: the same numbers to both, though the two mean something '
        "else by them.\n\n"
        "| there | here | remark | η | moved | difference |\n| --- | --- | --- | --- | --- | --- |\n"
    )
    Path(settings.output).write_text(text + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main(parse_settings(Settings))
