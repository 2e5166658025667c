"""The house rules that a program can check: short functions and files, no hidden import, the field's word for image."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "clip_guidance"
MODULES = {str(path.relative_to(PACKAGE.parent)): path for path in sorted(PACKAGE.rglob("*.py"))}
MAY_IMPORT_LATE = ("clip_guidance/__init__.py", "clip_guidance/_display.py", "clip_guidance/cli/")


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> tuple[str, str, ast.Module]:
    """The name, text and syntax tree of a module of the package."""
    text = MODULES[request.param].read_text()
    return request.param, text, ast.parse(text)


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_functions_and_files_are_short(module):
    name, text, tree = module
    long = [node.name for node in functions(tree) if node.end_lineno - node.lineno >= 60]
    assert not long, f"{name}: functions of more than 60 lines"
    assert text.count("\n") <= 300, f"{name}: more than 300 lines"


def test_imports_of_the_package_stand_at_the_top(module):
    name, _, tree = module
    if name.startswith(MAY_IMPORT_LATE):
        return
    late = [
        ast.unparse(node)
        for function in functions(tree)
        for node in ast.walk(function)
        if (isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("clip_guidance")))
        or (isinstance(node, ast.Import) and any(alias.name.startswith("clip_guidance") for alias in node.names))
    ]
    assert not late, f"{name}: imported inside a function"


def test_identifiers_say_image(module):
    name, _, tree = module
    spelled = {
        word
        for node in ast.walk(tree)
        for word in (getattr(node, field, None) for field in ("id", "attr", "arg", "name", "asname"))
        if isinstance(word, str) and "picture" in word.lower()
    }
    assert not spelled, f"{name}: the field says image"


def test_the_package_fits_a_screen():
    rooms = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(rooms) <= 24, sorted(rooms)
