"""``clip-guidance``: the app and its exit codes.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 some inputs failed (each is named), 2 invalid
request, 130 interrupted. Subcommands import torch only when they run, so that ``--help`` is immediate.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import typer

from clip_guidance.cli import (
    classify,
    compare,
    completion,
    convert,
    data,
    generate,
    index,
    models,
    score,
    search,
    similar,
    train,
    tune,
    ui,
)
from clip_guidance.cli._command import Command
from clip_guidance.cli._narration import narrate, narrated_logs
from clip_guidance.cli._shared_options import Quiet, Verbose, Version

app = typer.Typer(
    name="clip-guidance",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (generate, tune, score, compare, classify, similar, index, search, convert, models, ui):
    app.command(module.__name__.rpartition(".")[2], cls=Command)(module.command)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.command("completion")(completion.command)


@app.callback()
def options(version: Version = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Steer, score, classify, compare and search images with CLIP."""


def run(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        args: Arguments after the program's name; by default those of the process.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape names that stdout cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")  # as JSON escapes them too
    with narrated_logs():
        try:
            app(args, complete_var=completion.VARIABLE)
        except (ValueError, OSError) as error:  # a repeated label, an unknown model, a folder in the way
            narrate("error", str(error))
            sys.exit(2)
        except SystemExit as error:
            if error.code == 130:
                narrate("interrupted", "stopped; what was done is kept")
            raise


if __name__ == "__main__":
    run()
