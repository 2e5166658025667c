"""Dual encoders of transformers by family: each equals the library's own class; docs/clips.md says what works."""

import functools
from pathlib import Path

import pytest
from helpers.factories.families import FAMILIES
from helpers.family_checks import Found, check

from clip_guidance.clip.adapter import FAMILIES as LOADED

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clips.md"
QUICK = ("siglip", "metaclip_2")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return functools.cache(lambda name: check(name, tmp_path_factory.mktemp("family")))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_family_equals_the_library(found, name):
    family: Found = found(name)
    assert family.text <= 1e-6 and family.image <= 1e-6 and family.logits <= 1e-6
    assert family.gradient <= 1e-5  # of the largest element
    assert family.preprocessed <= 1e-6 and family.differentiable <= 1.01
    assert family.steers and family.judges
    assert family.conditions == (name == "clip")


def test_every_family_that_is_loaded_is_compared():
    assert {*LOADED, "clip"} == {*FAMILIES}


@pytest.mark.slow
def test_the_page_says_what_works(found, request):
    rows = [_row(name, found(name)) for name in FAMILIES]
    before, mark, rest = PAGE.read_text(encoding="utf-8").partition("| --- |")
    after = rest[rest.index("\n\n") :]
    columns = rest[: rest.index("\n")]
    expected = before + mark + columns + "\n" + "\n".join(rows) + after
    if request.config.getoption("--write-docs"):
        PAGE.write_text(expected, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == expected, "run it with --full --write-docs"


def _row(name: str, family: Found) -> str:
    equal = (family.text <= 1e-6, family.image <= 1e-6, family.logits <= 1e-6, family.differentiable <= 1.01)
    cells = ["✓" if works else "—" for works in (True, *equal, family.steers, family.judges, family.conditions)]
    return f"| `{name}` | {' | '.join(cells)} |"
