"""Train a small diffusion model that reads a CLIP's frozen text tower: ``clip-guidance train diffusion``.

There are two phases, each resumable: an autoencoder (Rombach et al. 2022, arXiv:2112.10752, section 3.1), whose latents
are then normalised to zero mean and unit variance by folding the affine map into its 1x1 convolutions; and a UNet
trained with v-prediction (Salimans & Ho 2022, arXiv:2202.00512, appendix D) on a schedule of zero terminal
signal-to-noise ratio (Lin et al. 2024, arXiv:2305.08891), with captions dropped for classifier-free guidance (Ho &
Salimans 2022, arXiv:2207.12598). The result is a stock ``StableDiffusionPipeline``, which
``DiffusionPipeline.from_pretrained(output)`` loads without this package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from clip_guidance.clip import CLIP, ModelError
from clip_guidance.data.dataset import CaptionedImages
from clip_guidance.generation.pipelines import load_pipeline
from clip_guidance.training.diffusion.alignment import AlignedUNet, Alignment, CleanStates, middle_side
from clip_guidance.training.diffusion.autoencoder import (
    AutoencoderLoss,
    load_autoencoder,
    make_autoencoder,
    normalise_latents,
    pixels,
    psnr,
)
from clip_guidance.training.diffusion.checks import check_settings
from clip_guidance.training.diffusion.denoiser import (
    CaptionedLatents,
    DenoisingLoss,
    HeldOutError,
    inflated_unet,
    load_images,
    make_scheduler,
    make_unet,
    sample_sheet,
    set_dropout,
)
from clip_guidance.training.ema import make_ema_model
from clip_guidance.training.launch import make_accelerator
from clip_guidance.training.order import SampleOrder
from clip_guidance.training.output import errors_as_sentences, locked_output
from clip_guidance.training.settings import save_settings
from clip_guidance.training.trainer import Plan, fit


@dataclass(frozen=True)
class Settings:
    """Settings of one run; the defaults are a small model for 64x64 images."""

    data: str  # captioned images: a table, folder, tars or a data set of the Hub; see clip_guidance.data
    output: str  # folder for checkpoints, samples and the finished pipeline
    clip: str = ""  # CLIP folder or name whose text tower conditions the UNet; not needed to train the autoencoder
    init: str | None = None  # pipeline to continue from: its autoencoder is kept, its UNet trained further
    autoencoder: str | None = None  # trained autoencoder, its folder or a pipeline; in place of that of init
    unet: str | None = None  # folder of a UNet to train further; in place of that of init
    phase: str = "all"  # "all", or "autoencoder" to stop before the UNet
    exclude_captions_containing: str | None = None  # leave out images whose name, or a caption, contains this text
    validation: str | None = None  # captioned images on which the errors of autoencoder and UNet are measured
    size: int = 64  # side of the square images, in pixels
    vae_channels: list[int] = field(default_factory=lambda: [24, 48, 96])  # by level; all but the last halve the side
    latent_channels: int = 4  # channels of the latents
    vae_steps: int = 3000  # optimizer steps of the autoencoder
    vae_batch_size: int = 16  # images per process and step of the autoencoder
    vae_learning_rate: float = 2e-3  # of the autoencoder, at the end of the warm-up
    kl_weight: float = 1e-5  # of the Kullback-Leibler term in the autoencoder's loss
    unet_channels: list[int] = field(default_factory=lambda: [64, 96, 144])  # by level
    unet_dropout: float = 0.0  # share of the values left out in the UNet's residual blocks during training
    unet_steps: int = 4000  # optimizer steps of the UNet
    batch_size: int = 64  # images per process and step of the UNet
    learning_rate: float = 1e-3  # of the UNet, at the end of the warm-up
    weight_decay: float = 0.01  # of AdamW, on matrices and kernels
    random_flip: bool = False  # mirror each image with probability 1/2, where the data says that it may be
    caption_dropout: float = 0.1  # share of captions replaced by "" for classifier-free guidance
    alignment: str | None = None  # CLIP whose image tower the UNet's middle layer is drawn near (REPA)
    alignment_weight: float = 0.5  # of that term, beside the error of the velocity
    alignment_share: float = 0.5  # of the steps, the first ones, in which that term counts
    compile: bool = False  # compile the UNet with torch.compile, which takes minutes at the first step
    timestep_power: float = 1.0  # t/T is uniform to this power: below 1 more noisy steps, which decide the shapes
    ema_decay: float = 0.998  # save the average of the UNet's weights over about 1/(1 - ema_decay) steps
    warmup: float = 100  # steps, or below 1 the share of all steps, in which the learning rate rises
    max_grad_norm: float = 1.0  # longer gradients are scaled down to this norm
    seed: int = 0  # of the weights, the order of the data and every random draw
    log_every: int = 20  # steps from one row of the log to the next
    save_every: int = 200  # steps from one checkpoint to the next
    sample_every: int = 400  # steps from one sheet of samples to the next
    evaluate_every: int = 400  # steps from one measurement on the validation images to the next
    sample_prompts: list[str] = field(
        default_factory=lambda: ["twemoji butterfly", "noto red apple", "fluent 3d cat face", "blob grinning face"]
    )  # prompts of the sheet of samples, a row each


def train_autoencoder(settings: Settings, data: CaptionedImages, accelerator: Accelerator) -> AutoencoderKL:
    """Train the autoencoder and save it to ``output/vae``, or load it from there."""
    folder = Path(settings.output) / "vae"
    if (folder / "config.json").is_file():
        return AutoencoderKL.from_pretrained(folder, use_safetensors=True)
    torch.manual_seed(settings.seed)
    vae = make_autoencoder(settings.vae_channels, settings.latent_channels, settings.size).to(
        memory_format=torch.channels_last
    )
    order = SampleOrder(len(data), settings.vae_batch_size, settings.seed, accelerator)

    def loss(model: nn.Module, step: int) -> dict[str, Tensor]:
        x = pixels(data.images[order(step)], accelerator.device)
        return model(x.flip(-1) if step % 2 else x)

    plan = Plan.of(settings, settings.vae_steps, settings.vae_learning_rate, order.global_batch_size)
    fit(accelerator, AutoencoderLoss(vae, settings.kl_weight), loss, plan, folder.with_name("vae-run"), phase="vae")
    vae.eval()
    normalise_latents(vae, data, accelerator.device)
    if accelerator.is_main_process:
        vae.save_pretrained(folder)
    accelerator.wait_for_everyone()
    return vae


def train_unet(
    settings: Settings,
    data: CaptionedImages,
    vae: AutoencoderKL,
    clip: CLIP,
    accelerator: Accelerator,
    unet: UNet2DConditionModel | None = None,
    unseen: CaptionedImages | None = None,
) -> StableDiffusionPipeline:
    """Train the UNet on the latents and captions of the data.

    The pipeline that is returned holds the average of the weights.

    Args:
        unet: The UNet to continue from; None makes a fresh one.
        unseen: Images on which the error is measured during training.
    """
    torch.manual_seed(settings.seed)
    device = accelerator.device
    text_encoder = clip.text_encoder.to_clip_text_model().to(device)
    if unet is None:
        size = settings.size // 2 ** (len(settings.vae_channels) - 1)
        width = text_encoder.config.hidden_size
        unet = make_unet(settings.unet_channels, vae.config.latent_channels, size, width)
    set_dropout(unet.train(), settings.unet_dropout)
    unet.to(device, memory_format=torch.channels_last)
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())  # so few tokens: the fused kernel's backward takes twice the time
    alignment = load_alignment(settings, data, unet, device)
    width = alignment and alignment.states.width
    model: nn.Module = AlignedUNet(unet, width).to(device) if width else unet
    ema_model = make_ema_model(model, settings.ema_decay)
    ema_model.eval()
    averaged: Any = ema_model.module
    pipeline = StableDiffusionPipeline(
        vae.to(device), text_encoder, clip.tokenizer, averaged.unet if alignment else averaged, make_scheduler(), None,
        None, requires_safety_checker=False,
    )  # fmt: skip
    order = SampleOrder(len(data), settings.batch_size, settings.seed, accelerator)
    options = (settings.seed, settings.random_flip, settings.caption_dropout)
    latents = CaptionedLatents(pipeline, data, order, accelerator, *options)
    loss = DenoisingLoss(latents, settings.timestep_power, alignment)
    held_out = None if unseen is None else HeldOutError(pipeline, unseen)

    def after_step(done: int) -> dict[str, float]:
        if done % settings.sample_every == 0 and accelerator.is_main_process:
            # Lin et al. 2024, section 3.4: without the rescaling zero terminal SNR overexposes
            call = {"num_inference_steps": 20, "guidance_scale": 3.0, "guidance_rescale": 0.7}
            sheet = sample_sheet(pipeline, settings.sample_prompts, call)
            sheet.save(Path(settings.output) / f"samples-{done:06d}.png")
        if held_out is not None and (done % settings.evaluate_every == 0 or done == settings.unet_steps):
            return {"held_out_loss": held_out()}
        return {}

    if settings.compile:
        model.forward = torch.compile(model.forward)  # after its copy was taken: the pipeline's stays as it is
    plan = Plan.of(settings, settings.unet_steps, settings.learning_rate, order.global_batch_size)
    folder = Path(settings.output) / "unet-run"
    fit(accelerator, model, loss, plan, folder, phase="unet", ema_model=ema_model, after_step=after_step)
    return pipeline


def load_alignment(
    settings: Settings, data: CaptionedImages, unet: UNet2DConditionModel, device: torch.device
) -> Alignment | None:
    """Read the images with the image tower that the UNet is aligned to; None without one.

    Raises:
        ModelError: There is no such CLIP of ours, or its tower has no states in a square.
    """
    if not settings.alignment:
        return None
    clip = CLIP.from_pretrained(settings.alignment)
    if not isinstance(clip, CLIP):
        raise ModelError(f"--alignment {settings.alignment}: expected a CLIP of ours, got a {type(clip).__name__}")
    states = CleanStates(clip.to(device), data, middle_side(unet), settings.random_flip)
    return Alignment(states, settings.alignment_weight, round(settings.alignment_share * settings.unet_steps))


def main(settings: Settings) -> None:
    """Train the phases that are asked for, and save the pipeline in ``output``.

    Raises:
        SystemExit: A setting is out of range or the phase unknown, or the data, a model, the output or the launch
            cannot be used; the message says so.
    """
    check_settings(settings)
    if not 0 <= settings.alignment_share <= 1:
        raise SystemExit(f"--alignment_share: expected a share in [0, 1], got {settings.alignment_share:g}")
    if not settings.alignment_weight > 0:
        raise SystemExit(f"--alignment_weight: expected a number above 0, got {settings.alignment_weight:g}")
    if settings.phase not in ("autoencoder", "all"):
        raise SystemExit(f'--phase: expected "autoencoder" or "all", got {settings.phase!r}')
    if settings.phase == "all" and not settings.clip:
        raise SystemExit("--clip: needed to train the UNet, whose texts its text tower reads; or --phase autoencoder")
    accelerator = make_accelerator()
    with errors_as_sentences(), locked_output(settings.output, accelerator):
        train(settings, accelerator)


def load_clip(name: str) -> CLIP:
    """Load the CLIP whose text tower the UNet reads.

    Raises:
        ModelError: There is no such CLIP, or its text tower is none that a stock pipeline can hold.
    """
    clip = CLIP.from_pretrained(name)
    if not isinstance(clip, CLIP) or not hasattr(clip.text_encoder, "to_clip_text_model"):
        tower = type(clip.text_encoder if isinstance(clip, CLIP) else clip).__name__
        raise ModelError(f"--clip {name}: a stock pipeline needs a text tower that is a CLIPTextModel, got {tower}")
    return clip


def train(settings: Settings, accelerator: Accelerator) -> None:
    """Train the phases that are asked for, and save the pipeline in ``output``."""
    clip = load_clip(settings.clip) if settings.phase == "all" else None
    data = load_images(settings.data, settings, accelerator)
    save_settings(settings, Path(settings.output) / "settings.json")
    known = load_pipeline(settings.init) if settings.init else None
    if settings.autoencoder:
        vae = load_autoencoder(settings.autoencoder)
    else:
        vae = known.vae if known is not None else train_autoencoder(settings, data, accelerator)
    if settings.unet:
        unet = UNet2DConditionModel.from_pretrained(settings.unet, torch_dtype=torch.float32, use_safetensors=True)
    else:
        unet = known and inflated_unet(known.unet, vae.config.latent_channels)
    unseen = None
    if settings.validation:
        unseen = load_images(settings.validation, settings, accelerator)
        error = psnr(vae.to(accelerator.device), unseen.images, accelerator.device)
        accelerator.print(f"autoencoder: PSNR {error:.2f} dB on {len(unseen)} images of {settings.validation}")
    if clip is not None:
        pipeline = train_unet(settings, data, vae, clip, accelerator, unet, unseen)
        if accelerator.is_main_process:
            pipeline.save_pretrained(settings.output, safe_serialization=True)
