"""``clip-guidance train``: the training programs that need no clone."""

from __future__ import annotations

import typer

from clip_guidance.cli import _train_options as own

app = typer.Typer(no_args_is_help=True, help="Train models on captioned images.")
# The words are parsed by the program itself, whose settings are those of a recipe: it has its own --help and --config.
WORDS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


@app.callback()
def group() -> None:
    """Train models on captioned images."""  # a callback keeps `clip` a subcommand while it is the only one


@app.command("clip", context_settings=WORDS)
def command(settings: own.TrainingSettings = None) -> None:
    """Train a CLIP on captioned images, from scratch or from another CLIP.

    Several processes: accelerate launch -m clip_guidance train clip, or torchrun.

    Example: clip-guidance train clip --data photos/ --output runs/my-clip
    """
    from clip_guidance.training.clip_settings import Settings
    from clip_guidance.training.settings import parse_settings
    from clip_guidance.training.train_clip import main

    try:
        main(parse_settings(Settings, settings or [], prog="clip-guidance train clip"))
    except SystemExit as end:  # of the program: a sentence, or the exit code of its parser
        raise (ValueError(end.code) if isinstance(end.code, str) else end) from None
