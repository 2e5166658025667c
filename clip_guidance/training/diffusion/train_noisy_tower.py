"""Train a tower that reads noisy latents, for guidance in mode "noisy": ``clip-guidance train noisy-tower``.

The tower meets the frozen text tower of a CLIP, which is the teacher and gives the texts; the autoencoder, of a
pipeline or alone, gives the latents; any captioned images will do. The average of the weights is measured at several
noise levels and saved in ``output/final``, which ``NoisyTower.from_pretrained`` loads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator

from clip_guidance._files import write_atomically
from clip_guidance.clip import CLIP, ModelError
from clip_guidance.guidance.modes.noisy import latent_probe
from clip_guidance.towers.noisy import PROBE_TEXT, NoisyTower
from clip_guidance.training.diffusion.autoencoder import load_autoencoder
from clip_guidance.training.diffusion.checks import check_settings
from clip_guidance.training.diffusion.denoiser import load_images
from clip_guidance.training.diffusion.noisy_tower import LEVELS, HeldOutRecall, NoisyTowerLoss
from clip_guidance.training.ema import make_ema_model
from clip_guidance.training.launch import make_accelerator
from clip_guidance.training.order import SampleOrder
from clip_guidance.training.output import errors_as_sentences, locked_output
from clip_guidance.training.settings import save_settings
from clip_guidance.training.trainer import Plan, fit


@dataclass(frozen=True)
class Settings:
    """Settings of one run; the defaults are a small tower for latents of 16 x 16."""

    data: str  # captioned images: a table, folder, tars or a data set of the Hub; see clip_guidance.data
    output: str  # folder for checkpoints, and in its folder "final" the finished tower
    clip: str  # CLIP folder or name: the teacher, whose text tower the new tower meets
    autoencoder: str  # trained autoencoder, its folder or a pipeline: the latents are its
    init: str | None = None  # folder of a tower to continue from; widths, depth and patch_size are then its
    exclude_captions_containing: str | None = None  # leave out images whose name, or a caption, contains this text
    validation: str | None = None  # captioned images on which the tower is measured
    size: int = 64  # side of the square images, in pixels
    widths: list[int] = field(default_factory=lambda: [48, 96, 144, 192])  # channels by stage; each halves the side
    depth: int = 2  # residual blocks in each stage
    patch_size: int = 1  # latents per position of the first stage, across and down; 2 leaves a quarter
    steps: int = 4000  # optimizer steps
    batch_size: int = 160  # images per process and step
    learning_rate: float = 2e-3  # at the end of the warm-up
    weight_decay: float = 0.05  # of AdamW, on matrices and kernels
    angle_power: float = 1.0  # the angle of the noise is uniform to this power: above 1 more of the clean side
    distill_weight: float = 1.0  # of the distance from the teacher's embedding of the clean image
    label_smoothing: float = 0.05  # share of the probability that goes to all texts alike
    random_flip: bool = False  # mirror each image with probability 1/2, where the data says that it may be
    ema_decay: float = 0.998  # save the average of the weights over about 1/(1 - ema_decay) steps
    warmup: float = 100  # steps, or below 1 the share of all steps, in which the learning rate rises
    max_grad_norm: float = 1.0  # longer gradients are scaled down to this norm
    seed: int = 0  # of the weights, the order of the data and every random draw
    log_every: int = 20  # steps from one row of the log to the next
    save_every: int = 200  # steps from one checkpoint to the next
    evaluate_every: int = 400  # steps from one measurement on the validation images to the next


def first_tower(settings: Settings, latent_channels: int, embed_dim: int) -> NoisyTower:
    """Make the tower that training begins with, or load that of ``init``.

    Raises:
        ModelError: The widths are none that a tower can have, or ``init`` holds no tower for such latents and texts.
    """
    if settings.init is None:
        try:
            return NoisyTower(latent_channels, embed_dim, settings.widths, settings.depth, settings.patch_size)
        except ValueError as error:
            raise ModelError(f"--{error}") from None
    config = NoisyTower.load_config(settings.init)
    if (kind := config.get("_class_name")) != NoisyTower.__name__:
        raise ModelError(f"--init {settings.init}: expected a NoisyTower, got {kind}")
    found, expected = (config["latent_channels"], config["embed_dim"]), (latent_channels, embed_dim)
    if found != expected:
        raise ModelError(
            f"--init {settings.init}: expected a tower for latents of {expected[0]} channels and embeddings of size "
            f"{expected[1]}, got one for {found[0]} and {found[1]}"
        )
    return NoisyTower.from_pretrained(settings.init).train()


def check_side(tower: NoisyTower, side: int, size: int) -> None:
    """Refuse latents of which the last stage of a tower would get nothing.

    Raises:
        ModelError: Says how large the latents are, and how large they must be.
    """
    stages = len(tower.config["widths"])
    least = tower.config["patch_size"] * 2 ** (stages - 1)
    if side < least:
        raise ModelError(
            f"--widths: {stages} stages need latents of side {least} or more, got {side} from images of "
            f"--size {size}; take fewer widths or larger images"
        )


def train(settings: Settings, accelerator: Accelerator) -> None:
    """Train the tower, and save the average of its weights."""
    clip, vae = CLIP.from_pretrained(settings.clip), load_autoencoder(settings.autoencoder)
    clip.requires_grad_(False).to(accelerator.device)
    vae.to(accelerator.device)
    data = load_images(settings.data, settings, accelerator)
    save_settings(settings, Path(settings.output) / "settings.json")
    torch.manual_seed(settings.seed)
    tower = first_tower(settings, vae.config.latent_channels, clip.projection_dim)
    tower.latent_probe.copy_(latent_probe(vae))
    tower.text_probe.copy_(clip.encode_text(PROBE_TEXT)[0])
    tower.to(accelerator.device, memory_format=torch.channels_last)
    average = make_ema_model(tower, settings.ema_decay)
    average.eval()
    averaged = cast(NoisyTower, average.module)
    order = SampleOrder(len(data), settings.batch_size, settings.seed, accelerator)
    kinds = (settings.angle_power, settings.distill_weight, settings.label_smoothing, settings.random_flip)
    loss = NoisyTowerLoss(clip, vae, data, order, accelerator, *kinds)
    check_side(tower, loss.latents.shape[-1], settings.size)
    held_out = None
    if settings.validation:
        unseen = load_images(settings.validation, settings, accelerator)
        held_out = HeldOutRecall(clip, vae, unseen, accelerator.device)

    def after_step(done: int) -> dict[str, float]:
        due = done % settings.evaluate_every == 0 or done == settings.steps
        return held_out(averaged) if held_out is not None and due else {}

    plan = Plan.of(settings, settings.steps, settings.learning_rate, order.global_batch_size)
    folder = Path(settings.output)
    fit(accelerator, tower, loss, plan, folder, phase="noisy tower", ema_model=average, after_step=after_step)
    if accelerator.is_main_process:
        final = Path(settings.output) / "final"
        averaged.save_pretrained(final)
        write_card(final, settings, held_out(averaged) if held_out is not None else {})


def write_card(folder: Path, settings: Settings, recalls: dict[str, float]) -> None:
    """Write the tower's README: what it belongs to, and what it names at which noise level."""
    rows = [f"| {level:.2f} | {100 * recalls[f'R@1_noise_{level:.2f}']:.1f} |" for level in LEVELS if recalls]
    measured = ["| noise in the variance | R@1 of unseen images, % |", "| --- | --- |", *rows] if rows else []
    belongs = f"It reads latents of `{settings.autoencoder}`, and meets the text tower of `{settings.clip}`."
    text = "\n".join(["# A tower for noisy latents", "", belongs, "", *measured, ""])
    with write_atomically(folder / "README.md") as partial:
        partial.write_text(text, encoding="utf-8")


def main(settings: Settings) -> None:
    """Train, and save the tower in ``output/final``.

    Raises:
        SystemExit: A setting is out of range, or the data, a model, the output or the launch cannot be used; the
            message says so.
    """
    check_settings(settings)
    accelerator = make_accelerator()
    with errors_as_sentences(), locked_output(settings.output, accelerator):
        train(settings, accelerator)
