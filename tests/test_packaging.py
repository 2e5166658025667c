"""The wheel, the cost of importing it, and the shape of the tree."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "diffusers", "transformers")
SHELVES = ("clip_guidance", "pipelines", "training", "examples", "benchmarks", "tests")
REFUSED = {".bin", ".ckpt", ".npy", ".pickle", ".pkl", ".pt", ".pth"}
PACKAGED = {".json", ".md", ".safetensors", ".txt"}


def python(code: str, *argv: str) -> str:
    """Runs `code` in a fresh interpreter at the repository root and returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cli_commands() -> dict[str, Any]:
    """The subcommands of clip-guidance by name."""
    from clip_guidance.cli.main import app

    group: Any = typer.main.get_command(app)
    return group.commands


# The wheel


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_wheel_holds_the_package_alone(wheel_files: set[str]) -> None:
    top = {name.split("/")[0] for name in wheel_files}
    assert {re.sub(r"-[\d.]+\w*\.dist-info$", ".dist-info", name) for name in top} == {
        "clip_guidance",
        "clip_guidance.dist-info",
    }


@pytest.mark.slow
def test_wheel_holds_the_whole_package(wheel_files: set[str]) -> None:
    """An ignore pattern that hides packaged weights or py.typed from git would hide them from the wheel."""
    files = [path for path in (ROOT / "clip_guidance").rglob("*") if path.is_file()]
    expected = {path.relative_to(ROOT).as_posix() for path in files if path.parent.name != "__pycache__"}
    assert {name for name in wheel_files if name.startswith("clip_guidance/")} == expected
    assert "clip_guidance/py.typed" in expected


# The cost of importing it


def test_import_is_light() -> None:
    loaded = python("import sys, clip_guidance; print(*sys.modules)").split()
    assert "clip_guidance" in loaded
    assert not set(HEAVY) & set(loaded)


def test_help_is_light() -> None:
    """Neither the command's --help nor that of any subcommand waits for the heavy libraries."""
    code = """
import sys
from clip_guidance.cli.main import run
for command in sys.argv[1:]:
    sys.argv = ["clip-guidance", *command.split(), "--help"]
    try:
        run()
    except SystemExit as done:
        assert not done.code, (command, done.code)
print("loaded:", *sys.modules)
"""
    names = cli_commands()
    shown, loaded = python(code, "", *names).rsplit("loaded:", 1)
    assert shown.count("Usage:") == 1 + len(names)
    assert not set(HEAVY) & set(loaded.split())


# The shape of the tree


LIMITS = {"clip_guidance": 320, "training": 320, "pipelines": 320, "examples": 60}


@pytest.mark.parametrize(("shelf", "limit"), LIMITS.items())
def test_files_are_short(shelf: str, limit: int) -> None:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in (ROOT / shelf).rglob("*.py")}
    long = {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > limit}
    assert not long, f"files over {limit} lines: {long}"


def test_shelves_are_no_packages() -> None:
    """With an __init__.py, `training` and `pipelines` would shadow, or be shadowed by, other projects'."""
    packages = [shelf for shelf in SHELVES if (ROOT / shelf / "__init__.py").exists()]
    assert packages == ["clip_guidance"]


def test_no_pickles() -> None:
    """Weights are safetensors: a pickle can run code where it is loaded."""
    files = [path for shelf in SHELVES for path in (ROOT / shelf).rglob("*") if path.is_file()]
    assert not [str(path) for path in files if path.suffix in REFUSED]
    packaged = [path for path in files if path.is_relative_to(ROOT / "clip_guidance" / "models")]
    assert not [str(path) for path in packaged if path.suffix not in PACKAGED]
