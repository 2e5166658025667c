"""README and the pages of docs/: what they type exists, what they show is public, and the reference is complete."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import clip_guidance as cg
from clip_guidance.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts)]
SHELVES = ("training", "pipelines", "examples", "benchmarks")
NOT_DESCRIBED = {"cli", "models"}  # the command line describes itself; models holds weights


def blocks(page: Path, *languages: str) -> list[str]:
    """The page's fenced code blocks in any of these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [body for language, body in found if language in languages]


def shell_commands(page: Path) -> Iterator[list[str]]:
    """Each shell command of the page as its words: continued lines joined, comments and pipes dropped."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = next((i for i, word in enumerate(words) if word in {"|", ">", "&&"} or word.endswith(";")), None)
                command = words if end is None else words[: end + words[end].endswith(";")]
                if command:
                    yield command
                words = [] if end is None else words[end + 1 :]


def python_code(page: Path) -> Iterator[str]:
    """The page's Python, without the prompts and the output of sessions."""
    yield from blocks(page, "python")
    for session in blocks(page, "pycon"):
        yield "\n".join(line[4:] for line in session.splitlines() if line.startswith((">>> ", "... ")))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_option_exists(page: Path) -> None:
    group = typer.main.get_command(app)
    for command in shell_commands(page):
        if "clip_guidance.cli.main" in command:  # behind a launcher, or after variables
            command = ["clip-guidance", *command[command.index("clip_guidance.cli.main") + 1 :]]
        if "clip-guidance" not in command[:2]:
            continue
        found, words = group, command[command.index("clip-guidance") + 1 :]
        while hasattr(found, "commands"):
            name = words.pop(0)
            assert name in found.commands, f"clip-guidance {name}: there are {', '.join(found.commands)}"
            found = found.commands[name]
        if found.context_settings.get("ignore_unknown_options"):
            continue  # a training program parses its words itself; the guide's are tested below
        known = {option for parameter in found.params for option in [*parameter.opts, *parameter.secondary_opts]}
        typed = {word.split("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)}
        assert not typed - known - {"--help"}, f"{command}: {sorted(typed - known)} are no options of it"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_program_exists(page: Path) -> None:
    words = [word for command in shell_commands(page) for word in command]
    programs = {word for word in words if word.endswith((".py", ".sh")) and word.split("/")[0] in SHELVES}
    assert not [program for program in sorted(programs) if not (ROOT / program).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_is_valid_and_its_names_are_public(page: Path) -> None:
    for code in python_code(page):
        ast.parse(code)
        unknown = [name for name in re.findall(r"\bcg\.(\w+)", code) if name not in cg.__all__]
        assert not unknown, f"clip_guidance has no {unknown}"


@pytest.mark.slow
def test_every_training_option_exists() -> None:
    others = {"config", "exclude", "fsdp_version", "help", "mixed_precision", "models", "nproc_per_node", "use_fsdp"}
    typed = re.findall(r"--([a-z]\w+)", (ROOT / "docs" / "guides" / "train.md").read_text(encoding="utf-8"))
    paths = [*(ROOT / "training").glob("*.py"), *(ROOT / "clip_guidance" / "training").rglob("*.py")]
    programs = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    classes = [node for tree in programs for node in tree.body if isinstance(node, ast.ClassDef)]
    settings = [node for node in classes if node.name.endswith("Settings")]
    known = {each.target.id for node in settings for each in node.body if isinstance(each, ast.AnnAssign)}
    assert {"edge_weight", "lora_rank"} <= known  # of train_autoencoder.py and train_clip.py
    assert not sorted(set(typed) - others - known)


def test_readme_has_the_test_commands() -> None:
    """.ci/run runs the first code block below the marker."""
    block = re.search(r"^<!-- test -->.*?^```\w*\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    assert block, "README.md: expected a code block below the marker <!-- test -->"
    assert [shlex.split(line) for line in block[1].splitlines()] == [
        ["pip", "install", "-c", "constraints.txt", "-e", ".[test]"],
        ["pytest"],
    ]


def test_readme_is_short() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 650
    assert len(re.findall(r"\d[\d,.]*", text)) <= 40, "figures belong into docs/results"


@pytest.mark.slow
def test_readme_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = (block for block in blocks(README, "python") if "load_pipeline" in block)
    exec(example, {})
    assert f"It prints `{capsys.readouterr().out.strip()}`" in README.read_text(encoding="utf-8")


def test_reference_has_every_public_name_and_package() -> None:
    reference = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.parent.name == "reference")
    index = (ROOT / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    exported = set(cg.__all__) - {"__version__"}
    assert not [name for name in sorted(exported) if not re.search(rf"[.]{name}\b", index)]
    rooms = {path.parent.name for path in (ROOT / "clip_guidance").glob("*/__init__.py")} - NOT_DESCRIBED
    assert not [room for room in sorted(rooms) if f".. automodule:: clip_guidance.{room}" not in reference]
