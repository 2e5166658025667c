"""ComfyUI's published interface, as far as the nodes use it, with a tiny model and VAE.

Written from the names and equations of ComfyUI a125cd84: a ``ModelPatcher`` with post-cfg functions and wrappers of a
run, sampling objects, an Euler loop that hands out x̂₀. It runs in inference mode, with weights made in it, as there.
"""

import copy
import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import nn

FOLDER = Path(__file__).resolve().parents[2] / "pipelines" / "comfyui"
SCALE = 0.7  # of the latents


def load_nodes() -> ModuleType:
    """Import the folder as ComfyUI imports custom nodes."""
    name = str(FOLDER).replace(".", "_x_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def part(name: str) -> ModuleType:
    """A module of the folder."""
    return sys.modules[f"{load_nodes().__name__}.{name}"]


class EPS:
    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return noise * ((1 + sigma**2) ** 0.5 if max_denoise else sigma) + latent_image

    def scaled(self, sigma, x):
        return x / (1 + sigma**2) ** 0.5

    def denoised(self, sigma, output, x):
        return x - output * sigma


class V_PREDICTION(EPS):
    def denoised(self, sigma, output, x):
        return x / (1 + sigma**2) - output * sigma / (1 + sigma**2) ** 0.5


class CONST:
    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * noise + (1 - sigma) * latent_image

    def scaled(self, sigma, x):
        return x

    def denoised(self, sigma, output, x):
        return x - output * sigma


class Network(nn.Module):
    """A denoiser whose output depends on the noise level."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x, sigma):
        return self.conv(x).tanh() + 0.1 * sigma * x


class FirstStage(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.decoder = nn.Conv2d(channels, 3, 3, padding=1)

    def decode(self, latents):
        return 0.3 * self.decoder(nn.functional.interpolate(latents, scale_factor=2.0)).tanh()


def make_vae(channels=4, dims=2, **weights):
    with torch.inference_mode():
        torch.manual_seed(1)
        network = FirstStage(channels)
        for name, value in weights.items():
            setattr(network, name, nn.Parameter(torch.tensor(value)))
    return SimpleNamespace(
        first_stage_model=network,
        vae_dtype=torch.float32,
        latent_channels=channels,
        latent_dim=dims,
        upscale_ratio=2,
        process_output=lambda image: torch.clamp((image + 1.0) / 2.0, min=0.0, max=1.0),
        process_input=lambda image: image * 2.0 - 1.0,
    )


class SD15:
    latent_channels, latent_dimensions, scale_factor = 4, 2, SCALE

    def __init__(self):
        with torch.inference_mode():
            self.scale = torch.full((1, 4, 1, 1), SCALE)  # as those formats have it that have one for each channel

    def process_out(self, latent):
        return latent / self.scale


class Patcher:
    """A model with its patches."""

    def __init__(self, sampling, latent_format=None):
        latent_format = latent_format or SD15()
        self.model = SimpleNamespace(
            model_sampling=sampling,
            latent_format=latent_format,
            network=_network(),
        )
        self.model_options, self.wrappers = {}, {}

    def clone(self):
        new = copy.copy(self)
        new.model_options = {k: list(v) if isinstance(v, list) else v for k, v in self.model_options.items()}
        new.wrappers = {kind: {k: list(v) for k, v in keys.items()} for kind, keys in self.wrappers.items()}
        return new

    def get_model_object(self, name):
        return getattr(self.model, name)

    def set_model_sampler_post_cfg_function(self, function, disable_cfg1_optimization=False):
        functions = self.model_options.get("sampler_post_cfg_function", [])
        self.model_options["sampler_post_cfg_function"] = [*functions, function]

    def add_wrapper_with_key(self, kind, key, wrapper):
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind, key):
        self.wrappers.get(kind, {}).pop(key, None)


def _network():
    with torch.inference_mode():
        torch.manual_seed(0)
        return Network()


def sample(patcher, sigmas, noise):
    """Euler's method over the sigmas; returns the clean sample."""

    def run(noise, latent_image, sampler, sigmas, *rest):
        model, sampling = patcher.model, patcher.model.model_sampling
        x = sampling.noise_scaling(sigmas[0], noise, latent_image)
        for now, then in pairwise(sigmas):
            output = model.network(sampling.scaled(now, x), now)
            denoised = sampling.denoised(now, output, x)
            for function in patcher.model_options.get("sampler_post_cfg_function", []):
                args = {"denoised": denoised, "sigma": now.expand(len(x)), "input": x, "model": model}
                denoised = function({**args, "model_options": patcher.model_options})
            x = x + (x - denoised) / now * (then - now)
        return x

    wrappers = [each for keys in patcher.wrappers.get("outer_sample", {}).values() for each in keys]
    for wrapper in reversed(wrappers):
        run = _around(wrapper, run)
    with torch.inference_mode():
        return run(noise, torch.zeros_like(noise), None, sigmas, None, None, True, 0)


def _around(wrapper, run):
    return lambda *args: wrapper(run, *args)
