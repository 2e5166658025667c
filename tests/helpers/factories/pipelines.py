"""A stock StableDiffusionPipeline and a CLIP, both tiny and random, for the guidance tests."""

import functools
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from clip_guidance.clip import DualEncoder

SCHEDULERS = {
    "ddim": lambda **config: DDIMScheduler(**{"clip_sample": False, "set_alpha_to_one": True, **config}),
    "euler": EulerDiscreteScheduler,
    "dpm": DPMSolverMultistepScheduler,
}
#: As in Stable Diffusion's own scheduler_config.json.
STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def make_scheduler(name, **config):
    return SCHEDULERS[name](**{**STABLE_DIFFUSION, **config})


class TinyCLIP(DualEncoder):
    """The part of a CLIP that guidance uses, with towers of one layer."""

    size, projection_dim, vocab_size = 6, 5, None

    def __init__(self, dim=5):
        super().__init__()
        self.projection = nn.Linear(3 * self.size**2, dim)
        self.logit_scale = nn.Parameter(torch.tensor([2.0]))
        self.image_processor = SimpleNamespace(differentiable=self._preprocess)
        self.encoded_texts = []

    def _preprocess(self, images):
        size = (self.size, self.size)
        return nn.functional.interpolate(images, size, mode="bicubic", antialias=True) * 4 - 2

    def image_states(self, pixel_values):
        return self.projection(pixel_values.flatten(1)).tanh()

    def image_embeds(self, pixel_values):
        return nn.functional.normalize(self.image_states(pixel_values), dim=-1)

    def text_embeds(self, input_ids, attention_mask=None):
        raise NotImplementedError("texts are encoded without a tokenizer")

    def _architecture(self):
        return type(self).__name__

    @torch.no_grad()
    def encode_text(self, texts):
        self.encoded_texts += texts
        seeds = [torch.Generator().manual_seed(sum(map(ord, text))) for text in texts]
        embeds = [torch.randn(self.projection.out_features, generator=seed) for seed in seeds]
        return nn.functional.normalize(torch.stack(embeds), dim=-1).to(self.dtype)

    @torch.no_grad()
    def encode_image(self, images):
        pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 for image in images]
        return torch.cat([self.image_embeds(self._preprocess(each.to(self.logit_scale))) for each in pixels])


def make_pipeline():
    """One token a letter, a UNet of 8 x 8 latents with one attention, a decoder to 16 x 16 images."""
    torch.manual_seed(0)
    vocab = {chr(c) + end: i for i, (c, end) in enumerate((c, e) for c in range(97, 123) for e in ("", "</w>"))}
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=12,
            bos_token_id=vocab["<|startoftext|>"],
            eos_token_id=vocab["<|endoftext|>"],
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        scaling_factor=0.7,
    )
    vae.decoder.conv_out.weight.data *= 0.2  # keeps images inside [0, 1], where nothing is clipped
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=12)
    return assemble(vae, text_encoder, tokenizer, unet, make_scheduler("ddim"))


def assemble(vae, text_encoder, tokenizer, unet, scheduler):
    parts = {
        "vae": vae.eval(),
        "text_encoder": text_encoder.eval(),
        "tokenizer": tokenizer,
        "unet": unet.eval(),
    }
    pipe = StableDiffusionPipeline(
        **parts,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, prompt="cat", seeds=(0,), steps=4, output_type="latent", **options):
    """Latents, or images with ``output_type="pt"``, one generator an image."""
    generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"guidance_scale": 3.0, "num_inference_steps": steps, "output_type": output_type, **options}
    return pipe(prompt, generator=generator, **options).images


class Recorder:
    """Another library's wrapper of ``scheduler.step``: notes what the scheduler receives."""

    def __init__(self, scheduler):
        self.calls = []
        original = scheduler.step

        @functools.wraps(original)
        def step(model_output, timestep, sample, *args, **kwargs):
            self.calls.append((model_output.clone(), timestep, sample.clone()))
            return original(model_output, timestep, sample, *args, **kwargs)

        scheduler.step = step
