"""Every option of every program tells in --help what it is."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHELVES = ("benchmarks", "examples", "pipelines", "training")
PROGRAMS = sorted(path for shelf in SHELVES for path in (ROOT / shelf).rglob("*.py"))
SETTINGS = sorted((ROOT / "clip_guidance" / "training").rglob("*.py"))
FILES = [str(path.relative_to(ROOT)) for path in (*SETTINGS, *PROGRAMS)]


@pytest.mark.parametrize("name", FILES)
def test_no_option_lacks_help(name):
    text = (ROOT / name).read_text()
    lines = text.encode().splitlines()
    silent = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
            for field in (field for field in node.body if isinstance(field, ast.AnnAssign)):
                if b"# " not in lines[field.end_lineno - 1][field.end_col_offset :]:
                    silent.append(field.target.id)
        is_option = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
        if is_option and not any(keyword.arg == "help" for keyword in node.keywords):
            silent.append(ast.unparse(node.args[0]))
    assert not silent, f"{name}: options without a help line"


def test_the_options_are_found():
    found = "".join((ROOT / name).read_text() for name in FILES)
    assert found.count("class Settings") >= 15 and found.count("add_argument(") >= 8
