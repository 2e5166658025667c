"""Particles as a patch of a SAMPLER: the images of a batch that promise most multiply on the way, others end.

A sampler of ComfyUI is a function of the noise levels, from the first to the last. It is called for one stretch of them
after the other, and between two stretches rows of the batch take the place of others. What a multistep sampler keeps of
earlier steps begins anew with each stretch. The mathematics are the package's (:class:`clip_guidance.Particles`).
"""

import copy
import math
import random
import warnings
from itertools import pairwise

import torch

import clip_guidance as cg
from clip_guidance.guidance.particles.population import Population, flat_rows
from clip_guidance.rewards.protocol import as_judge

from .autoencoder import Autoencoder, check_latents
from .guide import CATEGORY, GUIDE, as_reward

POTENTIALS = ["best", "difference", "max", "sum"]


class ParticleSampler:
    """Patch a SAMPLER so that each k images of a batch travel together."""

    CATEGORY, FUNCTION = CATEGORY, "patch"
    RETURN_TYPES = ("SAMPLER",)
    DESCRIPTION = (
        "Rate what each image of a batch is heading to, and let the best go on in the place of the others. Each k "
        "images in succession are one group and come out best first. It takes no gradient, so any reward will do."
    )

    @classmethod
    def INPUT_TYPES(cls):
        strength = {"default": 1.0, "min": 0.001, "max": 1e4, "step": 0.1}
        strength["tooltip"] = "Images follow the model's density times exp(strength·reward); best takes none"
        resample_at = {"default": "0.2, 0.4, 0.6, 0.8", "tooltip": "Shares of the run's steps after which to resample"}
        potential = {"tooltip": "best: the best of a group goes on alone; else Feynman-Kac, with a noisy sampler"}
        return {
            "required": {
                "sampler": ("SAMPLER",),
                "guide": (GUIDE,),
                "vae": ("VAE", {"tooltip": "The model's own VAE, or its TAESD"}),
                "prompt": ("STRING", {"multiline": True, "default": ""}),
                "k": ("INT", {"default": 4, "min": 1, "max": 4096, "tooltip": "Images of a group"}),
                "resample_at": ("STRING", resample_at),
                "potential": (POTENTIALS, potential),
                "strength": ("FLOAT", strength),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**31 - 1, "tooltip": "Of the resampling"}),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, resample_at):
        try:
            return bool(fractions(resample_at)) or "resample_at names no share of the run"
        except ValueError:
            return f"resample_at must be shares of the run in (0, 1), as 0.2, 0.5; got {resample_at[:80]!r}"

    def patch(self, sampler, guide, vae, prompt, k, resample_at, potential, strength, seed):
        if not callable(getattr(sampler, "sampler_function", None)):
            raise ValueError(f"expected a sampler that is a function of noise levels, got {type(sampler).__name__}")
        with torch.inference_mode(False):
            particles = cg.Particles(
                as_reward(guide, prompt),
                k,
                resample_at=fractions(resample_at),
                potential=potential,
                scale=None if potential == "best" else strength,
                seed=seed,
            )
        patched = copy.copy(sampler)
        patched.sampler_function = Resampled(sampler.sampler_function, particles, vae)
        return (patched,)


def fractions(text: str) -> list[float]:
    """Read shares of a run, in (0, 1), with commas between them."""
    found = [float(each) for each in text.split(",") if each.strip()]
    if not all(0 < each < 1 for each in found):
        raise ValueError(f"expected numbers in (0, 1), got {text}")
    return found


class Resampled:
    """Call a sampler of ComfyUI stretch by stretch, and exchange particles in between.

    Args:
        sample: The sampler's function, of the model, the samples, the noise levels and options.
        particles: The options.
        vae: ComfyUI's VAE, of the model's latent space.
    """

    def __init__(self, sample, particles: cg.Particles, vae) -> None:
        self._sample, self._particles, self._vae = sample, particles, vae

    def __call__(self, model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        """Return the samples at the last noise level, each group best first."""
        k, last_step = self._particles.k, len(sigmas) - 1
        if len(x) % k:
            raise ValueError(f"k={k} needs a batch of k latents for each group, got a batch of {len(x)}")
        latent_format = model.inner_model.inner_model.latent_format
        check_latents(self._vae, latent_format)
        with torch.inference_mode(False):
            latent_format, decoder = copy.deepcopy(latent_format), Autoencoder(self._vae, x.device)
        population, extra_args, copies = Population(self._particles, len(x) // k), extra_args or {}, {}
        for start, end in pairwise([0, *self._borders(last_step), last_step]):
            heard = _Heard(callback, start)
            args = extra_args if start == 0 else {**extra_args, "seed": _seed(extra_args.get("seed"), start)}
            x = self._sample(model, x, sigmas[start : end + 1], args, heard, disable, **options)
            _tell_of_copies(x, copies)
            is_clean = end == last_step and float(sigmas[-1]) == 0
            rewards = self._rated(x if is_clean else heard.denoised, latent_format, decoder)
            if end < last_step:
                places = population.resample(rewards, end - 1)
            else:
                places, result = population.rank(rewards, end - 1, last_step)
                self._particles.hold(result)
            rows = flat_rows(places)
            if end < last_step and not self._particles.is_warm_start:
                copies = {row: parent for row, parent in enumerate(rows.tolist()) if row != parent}
            x = x[rows.to(x.device)]
        return x

    def _borders(self, steps: int) -> list[int]:
        """Return the numbers of steps after which particles are resampled."""
        found = {math.ceil(fraction * steps - 1e-9) for fraction in self._particles.fractions}
        return sorted(found - {steps})

    def _rated(self, clean: torch.Tensor, latent_format, decoder: Autoencoder) -> torch.Tensor:
        """Return the rewards of clean samples, float64 (n, k)."""
        judge = as_judge(self._particles.reward)
        with torch.inference_mode(False), torch.no_grad():
            if isinstance(self._particles.reward, torch.nn.Module):
                self._particles.reward.to(clean.device)
            latents = latent_format.process_out(clean.clone())
            images = (decoder.decode(part)[0] for part in latents.split(self._particles.batch_size))
            ratings = torch.cat([judge.ratings((part / 2 + 0.5).clamp(0, 1)) for part in images])
        return ratings.double().unflatten(0, (-1, self._particles.k))


class _Heard:
    """Pass a sampler's reports on with the number of the whole run's step, and keep the latest clean prediction."""

    def __init__(self, callback, start: int) -> None:
        self._callback, self._start, self._denoised = callback, start, None

    def __call__(self, state: dict) -> None:
        self._denoised = state["denoised"]
        if self._callback is not None:
            self._callback({**state, "i": state["i"] + self._start})

    @property
    def denoised(self) -> torch.Tensor:
        """The clean samples predicted last."""
        if self._denoised is None:
            raise ValueError("this sampler does not report its clean predictions: take another one for particles")
        return self._denoised


def _seed(seed: int | None, start: int) -> int | None:
    """Return the seed of a stretch's noise: a sampler begins its noise anew at each call."""
    return None if seed is None else random.Random(f"{seed}-{start}").getrandbits(63)


def _tell_of_copies(x: torch.Tensor, copies: dict[int, int]) -> None:
    """Warn where a stretch did not tell copies from one another."""
    if copies and all(x[row].equal(x[parent]) for row, parent in copies.items()):
        warnings.warn(
            "copies of a particle stay equal, since this sampler adds no noise: take an ancestral or SDE sampler, or "
            "the potential 'best'",
            stacklevel=2,
        )
