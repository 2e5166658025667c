"""All stages run in order, are not run again, and go on where one of them failed."""

import json
import subprocess
import sys

import pytest
import yaml
from helpers.tables import write_table

CLIP = {"steps": 40, "batch_size": 4, "image_size": 16, "patch_size": 8, "image_width": 32, "image_layers": 1}
CLIP |= {"text_width": 32, "text_layers": 1, "vocab_size": 600}


@pytest.fixture(autouse=True)
def importable(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "training"))


def test_every_stage_of_the_packaged_models_is_there(root):
    from make_models import read_stages

    recipes = root / "training" / "recipes"
    stages = list(read_stages(recipes / "packaged.yaml"))
    outputs = [yaml.safe_load((recipes / stage.recipe).read_text())["output"] for stage in stages]
    for place, stage in enumerate(stages):
        recipe = yaml.safe_load((recipes / stage.recipe).read_text())
        given = [recipe[name] for name in ("init", "clip", "autoencoder") if name in recipe]
        assert set(given) <= set(outputs[:place]), stage  # made from nothing but what was made before


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("train_clip.py", "expected `program: recipe` as entry 1, got train_clip.py"),
        ({"train_clip.py": "nowhere.yaml"}, "entry 1 names .*nowhere.yaml, which is not there"),
        ({"nothing.py": "own.yaml"}, "entry 1 names .*nothing.py, which is not there"),
    ],
)
def test_a_wrong_entry_is_named_before_anything_runs(tmp_path, entry, message):
    from make_models import read_stages

    (tmp_path / "own.yaml").touch()
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump([entry]))
    with pytest.raises(SystemExit, match=message):
        list(read_stages(tmp_path / "stages.yaml"))


@pytest.mark.slow
def test_stages_run_once_and_go_on_after_a_failure(root, tmp_path):
    table = write_table(tmp_path / "train.parquet", ["cat", "dog", "bus", "tree", "ball", "fish"], size=16)
    recipes = {"first": {**CLIP, "output": "runs/first"}, "second": {**CLIP, "output": "runs/second"}}
    recipes["second"]["init"] = "runs/absent"
    for name, recipe in recipes.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**recipe, "data": [str(table)]}))
    stages = [{"train_clip.py": f"{name}.yaml"} for name in recipes]
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump(stages))
    command = [sys.executable, str(root / "training" / "make_models.py"), "--stages", "stages.yaml"]

    def run():
        return subprocess.run([*command, "--limit_steps", "2"], cwd=tmp_path, capture_output=True, text=True)

    failed = run()
    assert failed.returncode == 1, failed.stderr
    assert "second.yaml: train_clip.py ended with 1; start again to go on from there" in failed.stderr
    (finished,) = json.loads((tmp_path / "runs" / "packaged.json").read_text())
    assert (finished["recipe"], finished["limit_steps"]) == ("first.yaml", 2) and finished["seconds"] > 0
    (tmp_path / "runs" / "first").rename(tmp_path / "runs" / "absent")
    done = run()
    assert done.returncode == 0, done.stderr
    assert "first.yaml: finished before" in done.stdout and not (tmp_path / "runs" / "first").exists()
    assert json.loads((tmp_path / "runs" / "second" / "settings.json").read_text())["steps"] == 2
