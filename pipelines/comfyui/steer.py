"""CLIP guidance as a patch of a MODEL: at each step it adds its shift to the clean sample that the model predicts.

The patch enters where ComfyUI hands out the prediction after classifier-free guidance
(``set_model_sampler_post_cfg_function``), and needs no gradient of the model: it works with any sampler, LoRA,
ControlNet and area conditioning of the graph. The mathematics are the package's
(:class:`clip_guidance.guidance.X0Steering`).
"""

import copy
from dataclasses import dataclass

import torch
from torch import nn

import clip_guidance as cg
from clip_guidance.guidance import X0Steering

from .autoencoder import Autoencoder, check_latents
from .guide import CATEGORY, GUIDE, as_reward
from .sampling import check_prediction, noise_level, step_of

DECODING = {"auto": "auto", "full": 1.0, "1/2": 0.5, "1/4": 0.25}
OUTER_SAMPLE, KEY = "outer_sample", "clip_guidance"  # ComfyUI's name of a whole run, and ours among its wrappers


class CLIPGuidance:
    """Patch a MODEL so that its images move towards a text or an image."""

    CATEGORY, FUNCTION = CATEGORY, "patch"
    RETURN_TYPES = ("MODEL",)
    DESCRIPTION = (
        "Steer towards what a CLIP or a reward likes, at each step of any sampler. A second node behind this one adds "
        "its own shift."
    )

    @classmethod
    def INPUT_TYPES(cls):
        def number(default, least, most, tooltip, step=0.01):
            return {"default": default, "min": least, "max": most, "step": step, "tooltip": tooltip}

        share = "Share of the run's steps {} which guidance rests"
        decoding = {"tooltip": "Size at which the reward reads the image; auto: no larger than it sees"}
        return {
            "required": {
                "model": ("MODEL",),
                "guide": (GUIDE,),
                "vae": ("VAE", {"tooltip": "The model's own VAE, or its TAESD, which takes a tenth of the memory"}),
                "prompt": ("STRING", {"multiline": True, "default": ""}),
                "strength": ("FLOAT", number(1.0, -1e4, 1e4, "1 multiplies the density by exp(reward)", 0.1)),
                "start": ("FLOAT", number(0.0, 0.0, 0.99, share.format("before"))),
                "stop": ("FLOAT", number(1.0, 0.01, 1.0, share.format("after"))),
                "damping": ("FLOAT", number(0.0, 0.0, 1e3, "Curvature of the reward; more overshoots less")),
                "cutouts": ("INT", {"default": 1, "min": 1, "max": 64, "tooltip": "Views that a CLIP averages over"}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**31 - 1, "tooltip": "Of the cutouts"}),
                "decoding": (list(DECODING), decoding),
            },
            "optional": {"image": ("IMAGE", {"tooltip": "A target beside the prompt, or in its place"})},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, start, stop):
        return start < stop or f"start={start:g} must be below stop={stop:g}"

    def patch(self, model, guide, vae, prompt, strength, start, stop, damping, cutouts, seed, decoding, image=None):
        latent_format = model.get_model_object("latent_format")
        check_prediction(model.get_model_object("model_sampling"))
        check_latents(vae, latent_format)
        is_pixels = vae.upscale_ratio == 1
        with torch.inference_mode(False):
            guidance = cg.Guidance(
                as_reward(guide, prompt, cg.Cutouts(cutouts, seed) if cutouts > 1 else None, _targets(image)),
                strength,
                start=start,
                stop=stop,
                damping=damping,
                decoding=cg.Decoding(resolution=DECODING[decoding]),
                data_variance=0.25 if is_pixels else 1.0,
            )
        patched = model.clone()
        before = patched.model_options.get("sampler_post_cfg_function", [])
        others = [each for each in before if isinstance(each, Steering)]
        patched.model_options["sampler_post_cfg_function"] = [each for each in before if each not in others]
        patched.remove_wrappers_with_key(OUTER_SAMPLE, KEY)
        steering = Steering((*(guided for each in others for guided in each.guided), Guided(guidance, vae)))
        patched.set_model_sampler_post_cfg_function(steering)
        patched.add_wrapper_with_key(OUTER_SAMPLE, KEY, steering.run)
        return (patched,)


@dataclass(frozen=True)
class Guided:
    """A guidance, and the VAE that makes the images which it reads."""

    guidance: cg.Guidance
    vae: object


class Steering:
    """Add the shifts of one or several guidances to the predictions of a sampler.

    Args:
        guided: The guidances; each computes its shift from the prediction before all of them.
    """

    def __init__(self, guided: tuple[Guided, ...]) -> None:
        self.guided = guided
        self._sigmas, self._runs = None, []

    def run(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        """Go around a run of ComfyUI's sampler."""
        self._sigmas, self._runs = sigmas, []
        try:
            samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
            for each in self._runs:
                each.end()
            return samples
        finally:
            self._sigmas, self._runs = None, []  # and the copies of the VAEs' weights

    def __call__(self, args):
        """Return the prediction x̂₀ of a forward with the shifts added."""
        denoised, model_sampling = args["denoised"], args["model"].model_sampling
        sigma = args["sigma"].flatten()[0]
        alpha, weight = noise_level(model_sampling, sigma)
        at = {"step": step_of(float(sigma), self._sigmas), "steps": max(len(self._sigmas) - 1, 1)}
        with torch.inference_mode(False):
            x0 = denoised.clone()  # autograd refuses tensors of inference mode
            self._runs = self._runs or [self._begin(each, args["model"], x0.device) for each in self.guided]
            shift = sum(run.shift(x0, alpha, weight, **at) for run in self._runs)
        return (denoised + shift).to(denoised.dtype)

    @staticmethod
    def _begin(guided: Guided, model, device: torch.device) -> X0Steering:
        if isinstance(guided.guidance.reward, nn.Module):
            guided.guidance.reward.to(device)
        latent_format = copy.deepcopy(model.latent_format)  # its means, too, may have been made in inference mode
        return X0Steering(guided.guidance, Autoencoder(guided.vae, device), latent_format.process_out)


def _targets(image) -> list[torch.Tensor]:
    """Return the images (3, H, W) of ComfyUI's IMAGE, (B, H, W, C)."""
    return [] if image is None else [each.clone().movedim(-1, 0)[:3] for each in image]
