"""What every command takes: --version, -q, -v, --config and --save-config."""

import json
import logging
import warnings

import pytest
import typer
import yaml
from hypothesis import given
from hypothesis import strategies as st

import clip_guidance
from clip_guidance.cli import main, models
from clip_guidance.cli._command import Command

COMMANDS = {name: each for name, each in typer.main.get_command(main.app).commands.items() if isinstance(each, Command)}


def parsed(name: str, *words) -> typer.Context:
    return COMMANDS[name].make_context(name, [str(word) for word in words])


def said(done) -> str:
    return " ".join(done.err.replace("│", " ").split())


def test_the_version(cli):
    done = cli("--version")
    assert (done.code, done.out, done.err) == (0, f"clip-guidance {clip_guidance.__version__}\n", "")


def test_every_command_takes_the_shared_options():
    assert COMMANDS.keys() >= {"generate", "tune", "score", "compare", "classify", "similar", "index", "search", "ui"}
    for command in (*COMMANDS.values(), typer.main.get_command(main.app).commands["data"].commands["check"]):
        options = {option for param in command.params for option in param.opts}
        assert options >= {"-q", "--quiet", "-v", "--verbose", "--config", "--save-config"}


# --config and --save-config

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
OPTIONS = {  # of generate: as typed on the command line
    "prompt": st.lists(TEXTS, min_size=1, max_size=3),
    "negative-prompt": TEXTS | st.sampled_from(["no", "null", "1e3", "2024-01-01", "- a", "{}", "'"]),
    "steps": st.integers(1, 50),
    "guidance-scale": st.floats(1, 20),
    "scale": st.sampled_from(["1e-3", "5", "2.50"]),
    "region": st.lists(st.sampled_from(["a cat@0,0,0.5,1", "a dog@0,0,1,0.25"]), max_size=2),
    "json": st.just(True),
}


@pytest.mark.slow
@given(values=st.fixed_dictionaries({}, optional=OPTIONS))
def test_what_is_saved_is_what_was_typed(tmp_path_factory, values):
    file = tmp_path_factory.getbasetemp() / "saved.yaml"
    words = []
    for name, value in values.items():
        several = value if isinstance(value, list) else [value]
        words += [f"--{name}"] if value is True else [f"--{name}={each}" for each in several]
    typed = parsed("generate", *words, "--save-config", file)
    read = parsed("generate", "--config", file)
    assert repr(sorted(read.params.items())) == repr(sorted(typed.params.items()))
    sources = [{name: each.get_parameter_source(name).name for name in each.params} for each in (typed, read)]
    assert sources[0] == sources[1]  # generate --from replaces what was given, and keeps what is a default
    saved = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    assert saved.keys() == {name for name, value in values.items() if value != []}
    assert isinstance(saved.get("steps", 0), int) and isinstance(saved.get("scale", 0.0), float)


def test_the_command_line_beats_the_file(tmp_path):
    file = tmp_path / "score.yaml"
    file.write_text("paths: [a.png, b.png]\nbatch_size: 3\ndefinition: [hessel, cosine]\njson: true\nprompt: a cat\n")
    params = parsed("score", "--config", file, "--definition", "clip-iqa", "--batch-size", 5).params
    assert params["paths"] == ["a.png", "b.png"] and params["definition"] == ["clip-iqa"]
    assert (params["batch_size"], params["json"], params["prompt"]) == (5, True, "a cat")
    assert parsed("score", "c.png", "--config", file).params["paths"] == ["c.png"]
    file.write_text("json: false\nquiet: false\n")
    assert parsed("score", "--config", file).params["json"] is False
    file.write_text("# nothing yet\n")
    assert parsed("score", "c.png", "--config", file).params == parsed("score", "c.png").params


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bathc-size: 3", "bathc-size: score has no such option; it has paths, prompt,"),
        pytest.param("config: other.yaml", "config: score has no such option", marks=SLOW),
        pytest.param("batch-size: many", ", got 'many'", marks=SLOW),
        ("batch-size: 2.5", ", got 2.5"),
        pytest.param("batch-size: true", "batch-size: expected a text or a number, got True", marks=SLOW),
        pytest.param("batch-size: 0", ", got 0", marks=SLOW),
        pytest.param("batch-size: [1, 2]", "batch-size: expected a text or a number, got [1, 2]", marks=SLOW),
        pytest.param("json: 1", "json: expected true or false, got 1", marks=SLOW),
        ("prompt: 5", "prompt: expected a text, got the number 5; put it in quotes"),
        pytest.param("prompt: no", "prompt: expected a text or a number, got False", marks=SLOW),
        pytest.param("definition: [cosine, {a: 1}]", "a text or a number, or a list of them, got {'a': 1}", marks=SLOW),
        pytest.param("dtype: float8", "'float8' is not one of 'float32'", marks=SLOW),
        pytest.param("- prompt", "expected options and their values, got ['prompt']", marks=SLOW),
        pytest.param("[", "is no YAML", marks=SLOW),
        pytest.param("output: scores.txt", "must end in .jsonl or .csv", marks=SLOW),
    ],
)
def test_a_wrong_file_is_told_by_file_and_key(cli, tmp_path, text, message):
    file = tmp_path / "wrong.yaml"
    file.write_text(text + "\n")
    done = cli("score", "a.png", "--config", file)
    assert (done.code, done.out) == (2, "") and message in said(done)
    if not message.startswith("must end"):  # which the command tells of its options together
        key = text.partition(":")[0] + ":" if ": " in text else ""
        assert f"--config {file}: {key}" in said(done)


@pytest.mark.slow
def test_no_file_is_overwritten_by_options(cli, tmp_path):
    file = tmp_path / "notes.yaml"
    file.write_text("mine: 1\n")
    done = cli("models", "--save-config", file)
    assert done.code == 2 and "exists, and is no file of options" in said(done) and file.read_text() == "mine: 1\n"
    done = cli("models", "--save-config", tmp_path / "gone" / "x.yaml")
    assert done.code == 2 and f"there is no folder {tmp_path}/gone" in said(done)
    assert "cannot be read (No such file" in said(cli("models", "--config", tmp_path / "gone.yaml"))
    for words in (["--json"], []):  # a former one is replaced
        assert cli("models", *words, "--save-config", tmp_path / "models.yaml").code == 0
    assert yaml.safe_load((tmp_path / "models.yaml").read_text()) is None


# -q and -v


def loud(**_):
    """Say something of every kind, as libraries and commands do."""
    logging.getLogger("clip_guidance.index").warning("an index was repaired")
    logging.getLogger("clip_guidance.index").info("an index was opened")
    logging.getLogger("somebody.else").info("a request was sent")
    warnings.warn("a prompt was cut", UserWarning, stacklevel=1)
    warnings.warn("old", DeprecationWarning, stacklevel=1)
    main.narrate("note", "12 more rows")
    main.narrate("failed", "a.png: is empty")
    return []


@pytest.mark.filterwarnings("ignore:old:DeprecationWarning")  # as python does
@pytest.mark.parametrize(
    ("option", "place"),
    [
        (None, "behind"),
        ("--quiet", "file"),
        ("-v", "before"),
        pytest.param("-q", "behind", marks=SLOW),
        pytest.param("-q", "before", marks=SLOW),
        pytest.param("-v", "behind", marks=SLOW),
        pytest.param("--verbose", "file", marks=SLOW),
    ],
)
def test_how_much_is_said(cli, monkeypatch, option, place, tmp_path):
    monkeypatch.setattr(models, "FOLDER", type("Folder", (), {"glob": lambda self, _: loud()})())
    words = [option] if option else []
    if place == "file" and option and option.startswith("--"):
        (tmp_path / "models.yaml").write_text(f"{option[2:]}: true\n")
        words = ["--config", tmp_path / "models.yaml"]
    done = cli(*words, "models", "--json") if place == "before" and option else cli("models", "--json", *words)
    assert (done.code, json.loads(done.out)) == (0, [])
    kept = ["warning: an index was repaired", "warning: a prompt was cut", "failed: a.png: is empty"]
    logged = ["info: an index was opened", "info: a request was sent", "warning: old"]
    more = {"q": [], "v": [*logged, "note: 12 more rows"]}
    expected = kept + more.get((option or "n").lstrip("-")[0], ["note: 12 more rows"])
    assert sorted(done.err.splitlines()) == sorted(expected)
    assert logging.getLogger().level == logging.WARNING


def test_quiet_and_verbose_contradict_each_other(cli):
    for words in (["models", "-q", "-v"], ["-q", "models", "--verbose"]):
        done = cli(*words)
        assert (done.code, done.out) == (2, "") and "give --quiet or --verbose" in said(done)


def test_every_training_program_is_a_command(root):
    programs = {path.stem.removeprefix("train_").replace("_", "-") for path in (root / "training").glob("train_*.py")}
    group = typer.main.get_command(main.app).commands["train"]
    assert group.commands.keys() == programs == {"clip", "diffusion", "autoencoder", "noisy-tower", "student"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("diffusion", "--unet_dropout"),
        ("autoencoder", "--decibel_weight"),
        ("noisy-tower", "--angle_power"),
        ("student", "--teacher_steps"),
    ],
)
def test_a_program_is_that_of_its_name(cli, name, own):
    done = cli("train", name, "--help")
    assert done.code == 0 and own in done.out and f"usage: clip-guidance train {name} [" in done.out
    done = cli("train", name)
    assert (done.code, done.out) == (2, "") and len(done.err.splitlines()) == 2
    assert f"clip-guidance train {name}: error: the following arguments are required: --data" in done.err


@pytest.mark.slow
def test_training_takes_its_own_words(cli):
    done = cli("train", "clip", "--data", "photos", "--output", "out", "--stpes", 3)
    assert (done.code, done.out) == (2, "") and "--stpes" in done.err
    assert "clip-guidance train clip: error: " in done.err
    assert len(done.err.splitlines()) == 2  # a line of usage, and the error
    done = cli("train", "clip", "--data", "photos", "--output", "out", "--image_tower", "swin")
    assert (done.code, done.out) == (2, "")
    assert done.err == "error: --image_tower: expected one of vit, resnet, got 'swin'\n"
