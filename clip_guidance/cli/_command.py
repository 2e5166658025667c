"""A command that also takes -q, -v, and its options from a file.

What a file says is put before the words of the command line, so that it is parsed and checked as they are. An option
that the command line gives, too, is left out of the file, also where it may be repeated.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
import yaml
from typer.core import TyperCommand

from clip_guidance._files import write_atomically
from clip_guidance.cli._shared_options import shared

_HEAD = "# Options of clip-guidance "  # begins a file that may be replaced
_NOT_IN_FILES = {"config", "save_config", "help"}

_shared = typer.Typer(add_completion=False)
_shared.command()(shared)


class Command(TyperCommand):
    """A subcommand with the options that all have."""

    def __init__(self, *args: Any, params: list[Any] | None = None, **options: Any) -> None:
        own = typer.main.get_command(_shared).params
        super().__init__(*args, params=[*(params or []), *own], **options)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line, with the options of ``--config`` that it leaves open."""
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        typed = self._typed(ctx, args)
        if path := typed.get("config"):
            args = self._with_file(ctx, args, Path(path), typed)
        target = typed.get("save_config")
        if target:
            _check_target(Path(target))
        merged = list(args)
        rest = super().parse_args(ctx, args)
        if target and os.environ.get("RANK", "0") == "0":  # the first of several processes
            self._save(ctx, Path(target), self._typed(ctx, merged))
        return rest

    def _typed(self, ctx: Any, args: list[str]) -> dict[str, Any]:
        """Return what words say, as text by the name of the parameter."""
        found, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        return {name: value for name, value in found.items() if isinstance(value, str | bool | list | tuple)}

    def _with_file(self, ctx: Any, args: list[str], path: Path, typed: Mapping[str, Any]) -> list[str]:
        """Put the words of a file before, and its arguments behind, those of the command line."""
        known = {_key(each): each for each in self.params if each.name not in _NOT_IN_FILES}
        before, behind = [], []
        for key, value in _read(path).items():
            param = known.get(str(key).replace("_", "-"))
            if param is None:
                raise typer.BadParameter(
                    f"--config {path}: {key!s:.40}: {self.name} has no such option; it has {', '.join(known)}"[:300]
                )
            try:
                words = _words(ctx, param, value)
            except typer.BadParameter as error:
                raise typer.BadParameter(f"--config {path}: {key}: {error.message}"[:300]) from None
            if param.name in typed:
                continue
            if param.param_type_name == "argument":
                behind += words
            else:
                option = max(param.opts, key=len)
                before += [option for word in words if word is True] or [f"{option}={word}" for word in words]
        return [*before, *args, *(["--", *behind] if behind else [])]

    def _save(self, ctx: Any, path: Path, typed: Mapping[str, Any]) -> None:
        """Write what was typed or came from a file; defaults stay with the program."""
        named = [each for each in self.params if each.name in typed and each.name not in _NOT_IN_FILES]
        values = {_key(each): _plain(ctx, each, typed[each.name]) for each in named}
        with write_atomically(path) as partial:
            text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if values else ""
            partial.write_text(f"{_HEAD}{self.name}, for its --config\n{text}", encoding="utf-8")


def _key(param: Any) -> str:
    """Return the name of an option without its dashes, or of an argument."""
    return max(param.opts, key=len).lstrip("-").replace("_", "-")


def _read(path: Path) -> dict[Any, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"--config {path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"--config {path}: is no YAML ({' '.join(str(error).split()):.150})") from None
    if not isinstance(found, dict | None):
        raise typer.BadParameter(f"--config {path}: expected options and their values, got {found!r:.60}")
    return found or {}


def _words(ctx: Any, param: Any, value: Any) -> list[Any]:
    """Return the words that say a value of a file, or True for a flag; none for one that is off.

    Raises:
        typer.BadParameter: The command line would not take them, or the value is of another type.
    """
    if getattr(param, "is_flag", False):
        if not isinstance(value, bool):
            raise typer.BadParameter(f"expected true or false, got {value!r:.60}")
        return [True] if value else []
    several = param.nargs == -1 or getattr(param, "multiple", False)
    values = value if several and isinstance(value, list) else [value]
    for each in values:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            expected = "a text or a number, or a list of them" if several else "a text or a number"
            raise typer.BadParameter(f"expected {expected}, got {each!r:.60}")
    words = [str(each) for each in values]
    try:
        found = param.process_value(ctx, words if several else words[0])
    except typer.BadParameter as error:  # typer names the value in some of its messages
        got = "" if "got" in error.message else f", got {value!r:.60}"
        raise typer.BadParameter(error.message.removeprefix("Value error, ").rstrip(".") + got) from None
    for each, parsed in zip(values, found if several else [found], strict=True):
        if not isinstance(each, str) and not isinstance(parsed, int | float):
            raise typer.BadParameter(f"expected a text, got the number {each}; put it in quotes")
    return words


def _plain(ctx: Any, param: Any, typed: Any) -> Any:
    """Return what was typed as YAML has it: numbers as numbers, and several values as a list."""
    if getattr(param, "is_flag", False):
        return True
    if param.nargs == -1 or getattr(param, "multiple", False):
        parsed = param.process_value(ctx, list(typed))
        return [_number(word, value) for word, value in zip(typed, parsed, strict=True)]
    return _number(typed, param.process_value(ctx, typed))


def _number(word: str, value: Any) -> Any:
    return value if isinstance(value, int | float) else word


def _check_target(path: Path) -> None:
    if path.exists() and not (path.is_file() and path.read_text(encoding="utf-8", errors="replace").startswith(_HEAD)):
        raise typer.BadParameter(f"--save-config {path}: exists, and is no file of options; nothing is overwritten")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"--save-config {path}: there is no folder {path.parent}")
