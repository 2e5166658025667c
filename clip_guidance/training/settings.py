"""The settings of a program: a frozen dataclass, filled from a recipe and the command line.

The comment behind a field is the help line of its option:

    steps: int = 1000  # optimizer steps
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def parse_settings(cls: type[Settings], argv: Sequence[str] | None = None, prog: str | None = None) -> Settings:
    """Fill a dataclass from the command line and a recipe (``--config recipe.yaml``).

    The command line wins over the recipe.

    Args:
        cls: The dataclass; every field is an option, and the comment behind the field is its help line.
        argv: The words of the command line; by default those that the program was started with.
        prog: Name of the program in its help; by default that of the file.

    Raises:
        SystemExit: An option or a key of the recipe is unknown; the message names it.
    """
    from transformers import HfArgumentParser

    recipes = argparse.ArgumentParser(add_help=False)
    recipes.add_argument("--config", type=Path, help="YAML recipe with any of the options below")
    given, rest = recipes.parse_known_args(argv)
    parser = HfArgumentParser(cls, parents=[recipes], prog=prog)
    parser.usage = "%(prog)s [--config RECIPE.yaml] [--SETTING VALUE ...]"  # argparse lists all before any error
    comments = help_lines(cls)
    for action in parser._actions:
        action.help = comments.get(action.dest, action.help)
        if action.required or action.default in (None, ""):
            action.default = argparse.SUPPRESS  # the help would say "default: None"; the dataclass has it
    if given.config is not None:
        _use_recipe(parser, given.config, {field.name for field in fields(cls)})  # type: ignore[arg-type]
    values = vars(parser.parse_args(rest))
    values.pop("config", None)
    return cls(**values)


def help_lines(cls: type) -> dict[str, str]:
    """Read the help line of each option from the comment behind its field.

    Args:
        cls: A dataclass with its source at hand; the fields of its bases count too.

    Returns:
        Help lines by the name of the field, for argparse; fields without a comment have none.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        source = textwrap.dedent(inspect.getsource(base))
        lines = source.encode().splitlines()  # as bytes, in which the positions of a syntax tree count
        for field in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                _, _, comment = lines[field.end_lineno - 1][field.end_col_offset :].partition(b"#")  # type: ignore
                found[field.target.id] = comment.decode().strip().replace("%", "%%")  # argparse fills in %(default)s
    return {name: comment for name, comment in found.items() if comment}


def _use_recipe(parser: argparse.ArgumentParser, path: Path, names: set[str]) -> None:
    """Make the values of a recipe the parser's defaults."""
    import yaml

    if not path.is_file():
        parser.error(f"no recipe at {path}")
    try:
        recipe = yaml.safe_load(path.read_text("utf-8")) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        parser.error(f"{path}: cannot be read as a recipe: {' '.join(str(error).split()):.150}")
    if not isinstance(recipe, dict):
        parser.error(f"{path}: expected options and their values, got {type(recipe).__name__}")
    if unknown := set(recipe) - names:
        parser.error(f"{path}: unknown settings {sorted(unknown)}; known are {sorted(names)}")
    parser.set_defaults(**recipe)
    for action in parser._actions:
        action.required = action.required and action.dest not in recipe


def save_settings(settings: Any, path: Path) -> None:
    """Write the settings of a run as JSON beside its results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(settings), indent=2, default=str) + "\n")
