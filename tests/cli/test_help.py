"""The help texts of the command line."""

import pytest
import typer
from typer.core import TyperGroup

from clip_guidance.cli.main import app


def commands(command, name: str):
    """Yield every command below a group, with its full name."""
    if isinstance(command, TyperGroup):
        for key, child in command.commands.items():
            yield from commands(child, f"{name} {key}".strip())
    else:
        yield name, command


COMMANDS = dict(commands(typer.main.get_command(app), ""))


def test_subcommands_of_groups_are_found():
    assert {"generate", "score", "data check"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_and_each_of_its_options_and_arguments_has_a_help_text(name):
    command = COMMANDS[name]
    assert command.help and command.params
    assert not [each.name for each in command.params if not (each.help or "").strip()]
