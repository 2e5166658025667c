"""Tuning: the rule, the judge, what an interrupted tune goes on with, and the command line."""

import dataclasses
import json
import math
import os
from types import SimpleNamespace

import pytest
import torch
from helpers.factories import save_tiny_clip, save_tiny_pipeline
from PIL import Image

import clip_guidance as cg
from clip_guidance import report
from clip_guidance._tuned import GuidanceDefaults
from clip_guidance.cli.main import run
from clip_guidance.generation.tuning import TriedSetting, TuningGrid, choose
from clip_guidance.generation.tuning_runs import DrawnImage, TuningRuns

PROMPTS = ["a red apple", "a blue boat"]
GRID = TuningGrid(scales=(20.0, 50.0), modes=("x0",), dampings=(0.0,), windows=((0.0, 1.0),))
CALL = {"num_inference_steps": 2, "guidance_scale": 3.0}


def tried(scale, named, distance=None, seconds=1.0, failed=""):
    return TriedSetting(GuidanceDefaults(scale), named, distance, seconds, failed)


@pytest.mark.parametrize(
    ("settings", "best"),
    [
        ([tried(0, 0.5, 0.1), tried(1, 0.7, 0.1), tried(2, 0.9, 0.2)], 1),  # no farther from real images
        ([tried(0, 0.5, 0.1), tried(1, 0.7, 0.1, 3.0), tried(2, 0.7, 0.0, 2.0)], 2),  # ties by what takes less time
        ([tried(0, 0.5), tried(1, 0.7), tried(2, 0.9)], 2),  # without real images names alone count
        ([tried(0, 0.5, 0.1), tried(1, 0.4, 0.1)], 0),  # nothing beats no guidance
        ([tried(0, 0.5), tried(1, math.nan, failed="no"), tried(2, 0.6)], 2),
    ],
)
def test_the_rule(settings, best):
    assert choose(settings) is settings[best]


def test_the_grid_lies_around_the_calibrated_strength():
    settings = TuningGrid(modes=("x0",), windows=((0.0, 1.0),)).settings(0.04)
    assert [(each.scale, each.damping) for each in settings] == [
        (scale, damping) for damping in (0.0, 25.0) for scale in (0.02, 0.04, 0.08, 0.16)
    ]
    with pytest.raises(ValueError, match="mode must be one of x0, exact, noisy, blend, got 'dps'"):
        TuningGrid(modes=("dps",)).settings(1.0)


def test_what_was_drawn_is_read_again(tmp_path):
    file, setting, image = tmp_path / "runs.jsonl", GuidanceDefaults(2.0), DrawnImage(0.5, [1.0, 2.0])
    runs = TuningRuns(file, {"seed": 0, "prompts": ["a"]})
    runs.add(setting, 0, image)
    runs.fail(GuidanceDefaults(3.0), "no such mode")
    with file.open("a") as torn:
        torn.write('{"setting": {"sc')
    again = TuningRuns(file, {"seed": 0, "prompts": ["a"]})
    assert again.image(setting, 0) == image and again.image(setting, 1) is None
    assert again.failure(GuidanceDefaults(3.0)) == "no such mode" and not again.failure(setting)
    again.add(setting, 1, image)
    assert len(list(map(json.loads, file.read_text().splitlines()))) == 4
    with pytest.raises(ValueError, match=r"runs.jsonl: holds a tune with another seed: name a new file"):
        TuningRuns(file, {"seed": 1, "prompts": ["a"]})
    file.write_text('{"seed": 0}\n{"a": 1}\n')
    with pytest.raises(ValueError, match=r"runs.jsonl: is no file of a tune \(KeyError: 'setting'\)"):
        TuningRuns(file, {"seed": 0})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A pipeline, its CLIP and a judge, as folders and loaded."""
    folder = tmp_path_factory.mktemp("models")
    names = {name: save_tiny_clip(folder / name, seed=seed) for name, seed in (("clip", 0), ("judge", 1))}
    names["pipeline"] = save_tiny_pipeline(folder / "pipeline", folder / "clip")
    pipe = cg.load_pipeline(names["pipeline"])
    pipe.set_progress_bar_config(disable=True)
    clips = {name: cg.CLIP.from_pretrained(names[name]) for name in ("clip", "judge")}
    return SimpleNamespace(names=names, pipe=pipe, **clips)


@pytest.mark.slow
def test_an_interrupted_tune_goes_on_and_finds_the_same(models, tmp_path):
    real = [Image.new("RGB", (32, 32), color) for color in ("red", "blue", "green")]
    how = {"images": real, "grid": GRID, **CALL}
    count: list[int] = []

    def interrupt():
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt

    whole = cg.tune(models.pipe, models.clip, PROMPTS, models.judge, **how)
    file = tmp_path / "runs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        cg.tune(models.pipe, models.clip, PROMPTS, models.judge, runs=file, on_image=interrupt, **how)
    lines = file.read_text().splitlines()
    assert len(lines) == 4  # the head and three images
    found = cg.tune(models.pipe, models.clip, PROMPTS, models.judge, runs=file, **how)
    assert file.read_text().splitlines()[:4] == lines and len(file.read_text().splitlines()) == 1 + 3 * 2
    assert [(each.setting, each.named, each.kernel_distance) for each in found.tried] == [
        (each.setting, each.named, each.kernel_distance) for each in whole.tried
    ]
    assert [each.setting.scale for each in found.tried] == [0.0, 20.0, 50.0]
    assert found.best is choose(found.tried) and found.pair.defaults == found.best.setting
    assert found.pair.clip.fingerprint == models.clip.fingerprint()
    expected = cg.set_distances(models.judge, [unguided(models, i) for i in range(2)], real, "colors", ["kid"])
    assert found.tried[0].kernel_distance == pytest.approx(expected["kid"].value, rel=1e-4)
    assert "chosen" in report.tuning(found).to_html() and "chosen" in found._repr_html_()


def unguided(models, number):
    noise = torch.Generator().manual_seed(number)
    return models.pipe(PROMPTS[number], generator=noise, **CALL).images[0]


@pytest.mark.slow
def test_a_calibrated_strength_comes_first_and_the_budget_cuts_the_rest(models):
    grid = TuningGrid(modes=("x0", "noisy"), dampings=(0.0,), windows=((0.0, 1.0),))
    found = cg.tune(models.pipe, models.clip, PROMPTS, models.judge, grid=grid, budget=14, **CALL)
    scales = [each.setting.scale for each in found.tried]
    assert scales[:2] == [0.0, None] and found.untried == 3
    assert scales[3] / scales[2] == pytest.approx(2, rel=0.1) and len(scales) == 7
    assert "no tower for noisy latents" in found.tried[-1].failed and not found.tried[-2].failed


@pytest.mark.slow
def test_what_cannot_be_tuned_is_refused(models):
    same = cg.CLIP.from_pretrained(models.names["clip"])
    for change, message in (
        ({"judge": same}, "the judge is the CLIP that steers, .*: name another CLIP"),
        ({"prompts": ["a", "a"]}, "expected at least 2 different prompts to tell apart, got 1"),
        ({"budget": 3, "grid": GRID}, "a budget of 3 images is too small: 2 settings take 4"),
    ):
        given = {"prompts": PROMPTS, "judge": models.judge} | change
        with pytest.raises(ValueError, match=message):
            cg.tune(models.pipe, models.clip, **given)


@pytest.mark.slow
def test_the_command_writes_what_generate_takes(models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {name: str(folder) for name, folder in models.names.items()}
    shared = ["--steps", "2", "--guidance-scale", "3"]
    what = ["--model", names["pipeline"], "--clip", names["clip"], "--judge", names["judge"]]
    prompts = [word for text in PROMPTS for word in ("--prompt", text)]
    grid = ["--scale", "20", "--mode", "x0", "--damping", "0.5", "--window", "0,0.6"]
    with pytest.raises(SystemExit) as end:
        run(["tune", *what, *prompts, *grid, *shared, "--json", "--report", "page.html"])
    assert end.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    tuned = cg.load_tuned("tuned.json")
    assert printed["options"] == tuned.options and [each["scale"] for each in printed["tried"]] == [0.0, 20.0]
    assert "chosen" in (tmp_path / "page.html").read_text() and (tmp_path / "tuned.runs.jsonl").is_file()
    chosen = GuidanceDefaults(20.0, "x0", 0.5, 0.0, 0.6)
    dataclasses.replace(tuned, defaults=chosen).save("tuned.json")
    for more, code in (([], 0), (["--clip", names["judge"]], 2)):
        with pytest.raises(SystemExit) as end:
            run(["generate", "--tuned", "tuned.json", "--prompt", "a red apple", "--steps", "2", "--json", *more])
        assert end.value.code == code
        if not code:
            settings = json.loads(capsys.readouterr().out)[0]["settings"]
            assert {name: settings[name] for name in dataclasses.asdict(chosen)} == dataclasses.asdict(chosen)
    assert "tuned for the CLIP" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --prompt or --prompts-file"),
        (["--prompts-file", "absent.txt"], "absent.txt cannot be read: No such file or directory"),
        (["--prompts-file", os.devnull], "expected a prompt per line, got none"),
        (["--prompt", "a", "--output", "tuned.txt"], "--output must end in .json, got tuned.txt"),
        (["--prompt", "a", "--window", "0.6"], "expected START,STOP such as 0,0.6, got '0.6'"),
        (["--prompt", "a", "--window", "0.6,0.2"], "expected 0 <= START < STOP <= 1"),
    ],
)
def test_bad_options_are_refused(options, message, capsys):
    with pytest.raises(SystemExit) as end:
        run(["tune", "--judge", "emoji-judge", *options])
    assert end.value.code == 2 and message in " ".join(capsys.readouterr().err.replace("│", " ").split())
