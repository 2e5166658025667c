"""The wheel, the cost of importing it, and the shape of the tree."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

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


def build(root: Path, folder: Path) -> Path:
    """Builds wheel and sdist of a checkout, and returns the wheel."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    built = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel_files(wheel: Path) -> set[str]:
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


@pytest.mark.slow
def test_the_sdist_holds_the_tests_and_no_data_and_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    (sdist,) = wheel.parent.glob("*.tar.gz")
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, **safely)
    (tree,) = tmp_path.iterdir()
    for needed in ("tests/conftest.py", "training/train_clip.py", "docs/conf.py", "constraints.txt", "CITATION.cff"):
        assert (tree / needed).is_file(), f"the sdist lacks {needed}"
    files = [path for path in tree.rglob("*") if path.is_file() and "saved_before" not in path.parts]
    assert not [path for path in files if path.suffix in {".parquet", ".tar", ".zip", ".jsonl", ".whl", ".pyc"}]
    again = build(tree, tmp_path / "dist")
    assert again.read_bytes() == wheel.read_bytes()


@pytest.mark.slow
def test_the_wheel_works_alone(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which takes the dependencies, and nothing else, from this one."""
    venv.create(tmp_path / "venv")
    scripts = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    installer = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install", "-q", "--no-deps"]
    subprocess.run([*installer, str(wheel)], check=True)
    asked = subprocess.check_output(
        [scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    site = Path(asked.strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # behind what was installed
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options: dict[str, Any] = {"cwd": tmp_path, "env": env, "text": True}
    found = subprocess.check_output(
        [scripts / "python", "-c", "import clip_guidance as cg; print(cg.__file__, cg.__version__)"], **options
    )
    assert found.split() == [str(site / "clip_guidance" / "__init__.py"), project()["version"]]
    words = ["generate", "--prompt", "a noto picture of a rocket", "--steps", "2", "--json"]
    drawn = json.loads(subprocess.check_output([scripts / "clip-guidance", *words], **options))
    assert (tmp_path / drawn[0]["image"]).is_file()


# What a release says of itself


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def test_the_version_and_the_licence_are_the_same_everywhere() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    ours = project()
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()  # what the format demands
    assert (cited["version"], cited["license"]) == (ours["version"], ours["license"])
    assert cited["abstract"] == ours["description"] and cited["keywords"] == ours["keywords"]
    assert f"## [{ours['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_extras_are_documented_and_all_holds_those_of_users() -> None:
    extras = project()["optional-dependencies"]
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == extras.keys()
    (named,) = re.findall(r"clip-guidance\[([\w,]+)\]", extras["all"][0])
    assert named.split(",") == sorted(extras.keys() - {"all", "docs", "test"})


def test_nothing_older_than_what_was_tested_is_promised() -> None:
    """The tests run on the versions of constraints.txt; open_clip is not among them."""
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    ours = project()
    extras = ours["optional-dependencies"]
    needed = sum((extras[name] for name in ("data", "index", "lora", "plot", "train", "ui")), ours["dependencies"])
    for name, oldest in (re.match(r"([\w-]+)>=([\d.]+)", each).groups() for each in needed):
        assert tested[name].startswith(f"{oldest}."), f"{name}: {oldest} is promised, {tested[name]} was tested"


def test_the_oldest_python_is_the_same_everywhere() -> None:
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest = tables["project"]["requires-python"].removeprefix(">=")
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(tables["project"]["classifiers"]))
    assert versions[0] == oldest and tables["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    for page, said in (("docs/install.md", f"Python {oldest} or newer"), ("constraints.txt", f"on Python {oldest}.")):
        assert said in (ROOT / page).read_text(encoding="utf-8")


def test_templates_of_issues_are_forms() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name != "config.yml":
            assert form["name"] and form["description"]
            assert {field["type"] for field in form["body"]} <= {"input", "textarea"}
            assert all(field["id"] and field["attributes"]["label"] for field in form["body"])


def test_the_map_for_assistants_names_what_there_is() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", (ROOT / "AGENTS.md").read_text(encoding="utf-8"), re.M)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    rooms = {path.name for path in (ROOT / "clip_guidance").iterdir() if path.is_dir()} - {"__pycache__"}
    assert {name.removeprefix("clip_guidance/") for name in named} == rooms | set(SHELVES[1:]) | {"docs"}


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
