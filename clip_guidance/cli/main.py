"""``clip-guidance``: the app and its exit codes.

Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 some inputs failed (each is named), 2 invalid
request, 130 interrupted. Subcommands import torch only when they run, so that ``--help`` is immediate.
"""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Sequence

import typer

from clip_guidance.cli import (
    _common as common,
)
from clip_guidance.cli import (
    classify,
    compare,
    convert,
    data,
    generate,
    index,
    models,
    score,
    search,
    similar,
    tune,
    ui,
)

app = typer.Typer(
    name="clip-guidance",
    help="Steer, score, classify, compare and search images with CLIP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (generate, tune, score, compare, classify, similar, index, search, convert, models, ui):
    app.command(module.__name__.rpartition(".")[2])(module.command)
app.add_typer(data.app, name="data")


def run(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        args: Arguments after the program's name; by default those of the process.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape names that stdout cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")  # as JSON escapes them too
    log = logging.getLogger("clip_guidance")
    if not any(isinstance(handler, common.LogNarrator) for handler in log.handlers):
        log.addHandler(common.LogNarrator(logging.WARNING))
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = common.warn_once()
        try:
            app(args)
        except (ValueError, OSError) as error:  # a repeated label, an unknown model, a folder in the way
            common.narrate("error", str(error))
            sys.exit(2)
        except SystemExit as error:
            if error.code == 130:
                common.narrate("interrupted", "stopped; what was done is kept")
            raise


if __name__ == "__main__":
    run()
