"""``clip-guidance train``: the training programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import typer

from clip_guidance.cli import _common as common
from clip_guidance.cli import _train_options as own

Settings = TypeVar("Settings")

app = typer.Typer(
    no_args_is_help=True,
    help="Train models on captioned images; on several processes behind `accelerate launch -m clip_guidance train`.",
)
# The words are parsed by the program itself, whose settings are those of a recipe: it has its own --help and --config.
WORDS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def _run(name: str, cls: type[Settings], main: Callable[[Settings], None], words: list[str] | None) -> None:
    """Run a program with the settings that the words give.

    Raises:
        ValueError: The program ended with a sentence.
    """
    from clip_guidance.training.settings import parse_settings

    try:
        main(parse_settings(cls, words or [], prog=f"clip-guidance train {name}"))
    except SystemExit as end:  # of the program: a sentence, or the exit code of its parser
        raise (ValueError(end.code) if isinstance(end.code, str) else end) from None


@app.command("clip", context_settings=WORDS)
def clip(settings: own.TrainingSettings = None) -> None:
    """Train a CLIP on captioned images, from scratch or from another CLIP.

    Example: clip-guidance train clip --data photos/ --output runs/my-clip
    """
    from clip_guidance.training.clip_settings import Settings
    from clip_guidance.training.train_clip import main

    _run("clip", Settings, main, settings)


@app.command("diffusion", context_settings=WORDS)
def diffusion(settings: own.TrainingSettings = None) -> None:
    """Train a small latent diffusion model that reads the text tower of a CLIP.

    Example: clip-guidance train diffusion --data photos/ --clip runs/my-clip --output runs/my-pipeline
    """
    common.quiet("transformers", "diffusers")  # before the import, at which transformers prints advice
    from clip_guidance.training.diffusion.train_diffusion import Settings, main

    _run("diffusion", Settings, main, settings)


@app.command("autoencoder", context_settings=WORDS)
def autoencoder(settings: own.TrainingSettings = None) -> None:
    """Train the autoencoder of a latent diffusion model, from a trained one or from scratch.

    Example: clip-guidance train autoencoder --data photos/ --output runs/my-autoencoder
    """
    common.quiet("transformers", "diffusers")
    from clip_guidance.training.diffusion.train_autoencoder import Settings, main

    _run("autoencoder", Settings, main, settings)


@app.command("noisy-tower", context_settings=WORDS)
def noisy_tower(settings: own.TrainingSettings = None) -> None:
    """Train a tower that reads the noisy latents of a pipeline, for guidance in mode "noisy".

    Example: clip-guidance train noisy-tower --data photos/ --clip emoji --autoencoder emoji --output runs/my-tower
    """
    common.quiet("transformers", "diffusers")
    from clip_guidance.training.diffusion.train_noisy_tower import Settings, main

    _run("noisy-tower", Settings, main, settings)


@app.command("student", context_settings=WORDS)
def student(settings: own.TrainingSettings = None) -> None:
    """Train a student to draw in a few steps what a diffusion model draws in many.

    Example: clip-guidance train student --data photos/ --teacher emoji --output runs/my-student
    """
    common.quiet("transformers", "diffusers")
    from clip_guidance.training.diffusion.train_student import Settings, main

    _run("student", Settings, main, settings)
