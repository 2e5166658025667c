"""The house rules that a program can check: short functions and files, no hidden import, the field's word for image."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "clip_guidance"
MAY_IMPORT_LATE = ("clip_guidance/__init__.py", "clip_guidance/_display.py", "clip_guidance/cli/")


@pytest.fixture(scope="module")
def modules() -> dict[str, str]:
    """The text of every module of the package, by its path."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE.parent).as_posix(): path.read_text(encoding="utf-8") for path in paths}


@functools.cache
def nodes(text: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(text)))


def functions(text: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in nodes(text) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def is_late(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return bool(node.level) or (node.module or "").startswith("clip_guidance")
    return isinstance(node, ast.Import) and any(alias.name.startswith("clip_guidance") for alias in node.names)


def test_functions_have_at_most_60_lines(modules):
    long = {f"{name}: {each.name}" for name, text in modules.items() for each in functions(text) if lines(each) > 60}
    assert not long


def lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_files_have_at_most_300_lines(modules):
    assert not {name for name, text in modules.items() if text.count("\n") > 300}


def test_imports_of_the_package_stand_at_the_top(modules):
    late = {
        f"{name}: {ast.unparse(node)}"
        for name, text in modules.items()
        if not name.startswith(MAY_IMPORT_LATE)
        for function in functions(text)
        for node in ast.walk(function)
        if is_late(node)
    }
    assert not late


def test_identifiers_say_image(modules):
    fields = ("id", "attr", "arg", "name", "asname")
    spelled = {
        f"{name}: {word}"
        for name, text in modules.items()
        for node in nodes(text)
        for word in (getattr(node, field, None) for field in fields)
        if isinstance(word, str) and "picture" in word.lower()
    }
    assert not spelled


def test_the_package_fits_a_screen():
    rooms = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(rooms) <= 25, sorted(rooms)
