"""Every option that takes a number takes a finite one of its range, and the settings of an image the same ranges."""

import math
import typing

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from clip_guidance.cli import main
from clip_guidance.cli._checks import check_finite
from clip_guidance.generation.settings import RANGES, GenerateSettings

COMMANDS = typer.main.get_command(main.app).commands
COMMANDS = {**COMMANDS, "data": COMMANDS["data"].commands["check"]}
del COMMANDS["train"]  # the programs parse their own words
FUNCTIONS = {
    (module.__name__.rpartition(".")[2]): getattr(module, "check", None) or module.command
    for module in (*(getattr(main, name) for name in COMMANDS),)
}


def numeric() -> list[tuple[str, str, type, typer.models.OptionInfo]]:
    found = []
    for command, function in FUNCTIONS.items():
        for name, hint in typing.get_type_hints(function, include_extras=True).items():
            kind, *about = typing.get_args(hint) or (hint,)
            kinds = {each for each in (typing.get_args(kind) or (kind,)) if each in (int, float)}
            if kinds:
                found.append((command, name, kinds.pop(), about[0]))
    return found


NUMERIC = numeric()


def test_every_number_has_a_range():
    assert len(NUMERIC) > 20 and {command for command, *_ in NUMERIC} >= {"generate", "score", "compare", "ui", "data"}
    for command, name, _, about in NUMERIC:
        assert about.min is not None and math.isfinite(about.min), (command, name)
        assert about.max is not None and math.isfinite(about.max), (command, name)
        assert about.callback is check_finite, (command, name)


@pytest.mark.parametrize("name", RANGES)
def test_the_command_line_and_the_settings_agree(name):
    (about,) = [about for command, option, _, about in NUMERIC if (command, option) == ("generate", name)]
    assert (about.min, about.max) == RANGES[name]


@given(
    st.sampled_from(NUMERIC),
    st.one_of(
        st.floats().map(str), st.integers().map(str), st.sampled_from(["nan", "-nan", "inf", "-inf", "1e30", "-1e30"])
    ),
)
def test_what_is_out_of_range_is_refused_by_name(option, text):
    command, name, kind, about = option
    parameter = next(each for each in COMMANDS[command].params if each.name == name)
    context = typer.Context(COMMANDS[command], info_name=command)
    whole = text.lstrip("-").isdecimal()
    expected = int(text) if whole else float(text)
    try:
        found = parameter.process_value(context, text)
    except Exception as error:
        message = error.format_message()
        assert parameter.opts[0] in message and len(message) <= 300
        assert not about.min <= expected <= about.max or (kind is int and not whole)
    else:
        assert type(found) is kind and found == expected and about.min <= found <= about.max


@given(st.floats() | st.none())
def test_a_finite_number_is_finite(value):
    if value is None or math.isfinite(value):
        assert check_finite(value) == value
    else:
        with pytest.raises(typer.BadParameter, match=f"expected a finite number, got {value}"):
            check_finite(value)


@pytest.mark.parametrize("words", ["--guidance-scale nan", "--guidance-scale inf", "--scale 1e30", "--cutouts 99999"])
def test_no_image_is_drawn_by_a_number_that_is_none(cli, tmp_path, words):
    done = cli("generate", "--prompt", "a cat", *words.split(), "--output", tmp_path / "out")
    assert (done.code, done.out) == (2, "") and words.split()[0] in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1e30, 1e30, "1", True, [1]])
def test_settings_refuse_what_the_command_line_refuses(name, wrong):
    with pytest.raises(ValueError, match=rf"^{name} must be ") as raised:
        GenerateSettings("a cat", **{name: wrong})
    assert len(str(raised.value)) <= 300
