"""``clip-guidance completion``: let a shell complete commands and options."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from typer.completion import completion_init, get_completion_script

NAME, VARIABLE = "clip-guidance", "_CLIP_GUIDANCE_COMPLETE"  # the script calls the program with this variable set
completion_init()  # lets the program answer such a call


class Shell(StrEnum):
    """A shell whose script is known."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def command(shell: Annotated[Shell, typer.Argument(help="Shell that reads the script.", show_default=False)]) -> None:
    """Print the script by which a shell completes commands, options and their values.

    Example: clip-guidance completion bash > ~/.local/share/bash-completion/completions/clip-guidance
    """
    print(get_completion_script(prog_name=NAME, complete_var=VARIABLE, shell=shell.value))
