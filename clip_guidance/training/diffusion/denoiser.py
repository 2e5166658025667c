"""A small latent UNet conditioned on text: its schedule, its loss and its error.

v-prediction (Salimans & Ho 2022, arXiv:2202.00512, appendix D) on a schedule of zero terminal signal-to-noise ratio
(Lin et al. 2024, arXiv:2305.08891; all but zero), captions dropped for classifier-free guidance (Ho & Salimans 2022,
arXiv:2207.12598).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from PIL import Image
from torch import Tensor, nn

from clip_guidance.data.dataset import DRAWING_PHRASES, CaptionedImages, caption
from clip_guidance.training.batches import Prefetcher
from clip_guidance.training.diffusion.alignment import Alignment
from clip_guidance.training.diffusion.autoencoder import encode
from clip_guidance.training.order import SampleOrder

TERMINAL = 5e-7  # of ᾱ: twenty times what DDIM's step rounds by in float32, and no signal that could be seen


def make_unet(
    channels: Sequence[int], latent_channels: int, size: int, cross_attention_dim: int
) -> UNet2DConditionModel:
    """Make a UNet of convolutions, with cross-attention to the text at every lower resolution.

    Each residual block is also scaled and shifted by time and text together (Dhariwal & Nichol 2021, arXiv:2105.05233,
    section 3): a text that reached the lower resolutions alone would not be heard at the latents' own.
    """
    levels = len(channels)
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(channels),
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (levels - 1)),
        up_block_types=(*("CrossAttnUpBlock2D",) * (levels - 1), "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=4,  # heads, whatever diffusers calls it
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=max(1, cross_attention_dim // 32),
    )


@torch.no_grad()
def inflated_unet(unet: UNet2DConditionModel, latent_channels: int) -> UNet2DConditionModel:
    """Give a trained UNet more latent channels.

    What it predicts for the channels that it had stays the same, whatever the new ones hold; for those it predicts 0,
    the mean of the velocity of latents with zero mean.

    Args:
        unet: The UNet, left as it is.
        latent_channels: How many channels the result reads and predicts; as many as before makes a copy.

    Raises:
        ValueError: The UNet has more channels already.
    """
    known = unet.config.in_channels
    if latent_channels < known:
        raise ValueError(f"latent_channels: expected at least the {known} of the UNet, got {latent_channels}")
    wide = UNet2DConditionModel.from_config(unet.config, in_channels=latent_channels, out_channels=latent_channels)
    state = unet.state_dict()
    for name, axis in (("conv_in.weight", 1), ("conv_out.weight", 0), ("conv_out.bias", 0)):
        shape = list(state[name].shape)
        shape[axis] = latent_channels - known
        state[name] = torch.cat([state[name], state[name].new_zeros(shape)], axis)
    wide.load_state_dict(state)
    return wide.to(unet.dtype)


def set_dropout(unet: UNet2DConditionModel, share: float) -> None:
    """Leave out a share, in [0, 1), of the values inside each residual block in training mode."""
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            module.dropout.p = share


def make_scheduler() -> DDIMScheduler:
    """Make the schedule: v-prediction up to pure noise, else white backgrounds turn grey.

    ᾱ ends at ``TERMINAL``, not at 0: there 1 − ᾱ' − τ² of DDIM's step with η = 1 is 0, which rounds below 0 on some
    processors, and its root is no number. All other ᾱ differ from those of zero terminal signal-to-noise ratio by at
    most as much. The betas are written out, since no parameters of a stock scheduler give them; so any scheduler that
    is built from this one's config has them too.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    products = TERMINAL + (1 - TERMINAL) * (1 - rescale_zero_terminal_snr(betas)).cumprod(0)
    betas = 1 - products / torch.cat([products.new_ones(1), products[:-1]])
    return DDIMScheduler(
        trained_betas=[round(beta, 9) for beta in betas.tolist()],
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def token_ids(pipeline: StableDiffusionPipeline, captions: list[str]) -> Tensor:
    """Tokenize to int64 (N, L), padded to the whole context, as the pipeline does."""
    return pipeline.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


@dataclass(frozen=True)
class LatentBatch:
    """The images of a step.

    Attributes:
        latents: (B, C, h, w).
        text: What the text encoder makes of their captions (B, L, d).
        indices: Which images they are, int64 (B,), on the CPU.
        mirrored: Which of them are mirrored, bool (B,), on the CPU.
    """

    latents: Tensor
    text: Tensor
    indices: Tensor
    mirrored: Tensor


class CaptionedLatents:
    """The latents of a step's images, mirrored or not, with what the text encoder makes of their captions.

    Args:
        pipeline: Its autoencoder encodes the images, once; its text encoder and tokenizer encode the captions.
        data: The images and their captions.
        order: The indices of each step's images.
        accelerator: Of the run.
        seed: Of the draws of captions.
        random_flip: Mirror each image with probability 1/2, where its row says that it may be.
        caption_dropout: Share of captions replaced by "".
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        data: CaptionedImages,
        order: SampleOrder,
        accelerator: Accelerator,
        seed: int,
        random_flip: bool = False,
        caption_dropout: float = 0.1,
    ):
        self.pipeline, self.rows, self.order = pipeline, data.rows, order
        self.accelerator, self.seed, self.caption_dropout = accelerator, seed, caption_dropout
        self.latents = encode(pipeline.vae, data.images, accelerator.device)
        self.mirrored = encode(pipeline.vae, data.images.flip(-1), accelerator.device) if random_flip else None
        self.mirrors = torch.tensor([row.mirrors for row in data.rows])
        self.draw = Prefetcher(self._draw)  # the CPU draws captions while a GPU takes the step before

    def _draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Draw the indices of the images, int64 (B,), and the tokens of their captions (B, L)."""
        indices = self.order(step)
        rng = random.Random(f"{self.seed}-{step}-{self.accelerator.process_index}")
        captions = [
            "" if rng.random() < self.caption_dropout else caption(self.rows[i], rng, DRAWING_PHRASES)
            for i in indices.tolist()
        ]
        return indices, token_ids(self.pipeline, captions)

    def __call__(self, step: int) -> LatentBatch:
        """Return the images of a step, on the run's device."""
        indices, input_ids = self.draw(step)
        device, x0 = self.accelerator.device, self.latents[indices]
        chosen = torch.zeros(len(x0), dtype=torch.bool)
        if self.mirrored is not None:
            chosen = self.mirrors[indices] & (torch.rand(len(x0)) < 0.5)
            x0 = torch.where(chosen[:, None, None, None], self.mirrored[indices], x0)
        with torch.no_grad(), self.accelerator.autocast():
            text = self.pipeline.text_encoder(input_ids.to(device))[0]
        return LatentBatch(x0.to(device, memory_format=torch.channels_last), text, indices, chosen)


def strata(count: int) -> Tensor:
    """Draw one number from each of ``count`` equal intervals of [0, 1), in random order.

    The mean over them is the same as that over independent numbers, with less variance.
    """
    return (torch.randperm(count) + torch.rand(count)) / count


class DenoisingLoss:
    """The squared error of the velocity at a step's images, captions, times and noise.

    Args:
        latents: The latents and captions of each step; the times are those of their pipeline's scheduler.
        timestep_power: t/T is uniform to this power.
        alignment: Added to the error, of a model that is an :class:`~.alignment.AlignedUNet`.
    """

    def __init__(self, latents: CaptionedLatents, timestep_power: float = 1.0, alignment: Alignment | None = None):
        self.latents, self.timestep_power, self.alignment = latents, timestep_power, alignment

    def __call__(self, model: nn.Module, step: int) -> dict[str, Tensor]:
        batch = self.latents(step)
        x0 = batch.latents
        scheduler, noise = self.latents.pipeline.scheduler, torch.randn_like(x0)
        times = strata(len(x0)) ** self.timestep_power
        timesteps = (times * scheduler.config.num_train_timesteps).long().to(x0.device)
        x = scheduler.add_noise(x0, noise, timesteps)
        velocity = scheduler.get_velocity(x0, noise, timesteps)
        found = model(x, timesteps, batch.text)
        error = F.mse_loss(found.sample.float(), velocity)
        if self.alignment is None:
            return {"loss": error}
        # Also where its weight is 0, since every process must have a gradient of every weight.
        far = self.alignment(found.states, batch.indices, batch.mirrored)
        return {"loss": error + self.alignment.weight(step) * far, "error": error.detach(), "far": far.detach()}


class HeldOutError:
    """Measure the squared error of the velocity on unseen images, always with the same noise.

    Args:
        pipeline: Its UNet is measured.
        data: The images, each with its full caption.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, data: CaptionedImages):
        self.pipeline, device = pipeline, pipeline.vae.device
        self.latents = encode(pipeline.vae, data.images, device)
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.randn(self.latents.shape, generator=generator)
        steps = pipeline.scheduler.config.num_train_timesteps
        self.timesteps = (torch.arange(len(data)) * steps) // len(data)
        input_ids = token_ids(pipeline, [row.prompt for row in data.rows]).to(device)
        with torch.no_grad():
            self.text = torch.cat([pipeline.text_encoder(part)[0] for part in input_ids.split(256)])

    @torch.no_grad()
    def __call__(self) -> float:
        """Return the mean over all images, at times evenly spread from 0 to T."""
        squares, device = 0.0, self.text.device
        for chosen in torch.arange(len(self.latents)).split(256):
            x0, noise, timesteps = (part[chosen].to(device) for part in (self.latents, self.noise, self.timesteps))
            x = self.pipeline.scheduler.add_noise(x0, noise, timesteps)
            velocity = self.pipeline.scheduler.get_velocity(x0, noise, timesteps)
            found = self.pipeline.unet(x, timesteps, self.text[chosen.to(device)]).sample
            squares += F.mse_loss(found, velocity).item() * len(chosen)
        return squares / len(self.latents)


def sample_sheet(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], call: Mapping[str, Any], columns: int = 4
) -> Image.Image:
    """Draw a row of images per prompt, to be looked at during training; ``call`` holds arguments of the pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for prompt in prompts:
        generator = [torch.Generator().manual_seed(seed) for seed in range(columns)]
        rows.append(pipeline(prompt, num_images_per_prompt=columns, generator=generator, **call).images)
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (columns * width, len(rows) * height))
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            sheet.paste(image, (column * width, row * height))
    return sheet


def load_images(path: str, settings: Any, accelerator: Accelerator) -> CaptionedImages:
    """Load captioned images of a program's ``size``, without those that it excludes; say what was left out."""
    data = CaptionedImages.load(path, settings.size, settings.exclude_captions_containing)
    accelerator.print(f"{path}: {len(data)} images, {len(data.skipped)} left out")
    for row, reason in data.skipped:
        accelerator.print(f"  row {row}: {reason}")
    return data
