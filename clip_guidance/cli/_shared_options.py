"""The options that every command has beside its own: how much it says, and a file of options to read or write."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clip_guidance import __version__
from clip_guidance.cli._narration import be_quiet, be_verbose


def _print_version(value: bool) -> None:
    if value:
        print(f"clip-guidance {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", callback=_print_version, expose_value=False, is_eager=True, help="Print the version and exit."
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "-q", "--quiet", callback=be_quiet, expose_value=False, is_eager=True,
        help="Say nothing but results, failures and warnings.",
    ),
]  # fmt: skip
Verbose = Annotated[
    bool,
    typer.Option(
        "-v", "--verbose", callback=be_verbose, expose_value=False, is_eager=True, help="Also say what libraries log."
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        expose_value=False, help="YAML file of options, by their names; the command line wins.", show_default=False
    ),
]
SaveConfig = Annotated[
    Path | None,
    typer.Option(expose_value=False, help="Write the options of this call to a file for --config.", show_default=False),
]


def shared(
    quiet: Quiet = False, verbose: Verbose = False, config: Config = None, save_config: SaveConfig = None
) -> None:
    """Have the options that every command has; :class:`._command.Command` takes them from here."""
