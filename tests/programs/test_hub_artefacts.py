"""What ``pipelines/build.py`` writes: loaded back from disk as a stranger would, it does what its card says."""

import json
import os
import re
import subprocess
import sys

import diffusers as d
import pytest
import torch
from helpers import hub_models
from helpers.factories import save_tiny_clip
from helpers.hub_models import images_of
from huggingface_hub import ModelCard

import clip_guidance as cg

STRANGER = """
import pathlib, re, sys
for card in sorted(pathlib.Path("alice").glob("*/README.md")):
    (snippet,) = re.findall(r"```python\\n(.*?)```", card.read_text(), re.S)
    exec(compile(snippet, str(card), "exec"), {})
    image = pathlib.Path("apple.png")
    assert image.is_file() == ("apple.png" in snippet), card
    image.unlink(missing_ok=True)
    print("done:", card.parent.name)
"""


@pytest.mark.slow
def test_every_card_works_as_written(root, builder, tiny_models, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    hub = tmp_path / "hub"
    command = [sys.executable, str(root / "pipelines" / "build.py"), "--output", str(hub), "--owner", "alice"]
    built = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert built.returncode == 0, built.stderr
    assert built.stdout.split() == [str(hub / "alice" / name) for name in builder.ARTEFACTS]
    for folder in tiny_models.iterdir():
        (hub / folder.name).symlink_to(folder)
    done = subprocess.run([sys.executable, "-c", STRANGER], capture_output=True, text=True, env=environment, cwd=hub)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"done: (\S+)", done.stdout) == sorted(builder.ARTEFACTS)
    check_files(hub / "alice", root)
    check_models(hub / "alice")
    check_guider(hub)


def check_files(folder, root):
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert path.suffix in {".md", ".png", ".json", ".safetensors", ".py"}, path
        if path.suffix in {".md", ".json", ".py"}:
            text = path.read_text(encoding="utf-8")
            assert str(root) not in text and str(folder) not in text and "$OWNER" not in text, path
    for card in folder.glob("*/README.md"):
        data = ModelCard.load(card).data.to_dict()
        assert data["license"] == "apache-2.0" and data["library_name"] in {"diffusers", "clip_guidance"}
        assert data["tags"]
        shown = re.findall(r"!\[[^]]*\]\((\S+)\)", card.read_text(encoding="utf-8"))
        assert all((card.parent / image).is_file() for image in shown)


def check_models(folder):
    """The models are the packaged ones to the last bit."""
    for name, packaged in {"emoji-clip": "emoji", "emoji-judge": "emoji-judge"}.items():
        assert cg.CLIP.from_pretrained(folder / name).fingerprint() == cg.CLIP.from_pretrained(packaged).fingerprint()
        assert (folder / name / "domain.safetensors").is_file()
    stock, ours = d.DiffusionPipeline.from_pretrained(folder / "emoji-pipeline"), cg.load_pipeline("emoji")
    assert type(stock) is d.StableDiffusionPipeline
    call = {"prompt": "a red apple", "height": 64, "width": 64}
    assert images_of(stock, **call).equal(images_of(ours, **call))


def check_guider(hub):
    """It is the saved one, around diffusers' own, in a pipeline whose other components are those of the model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(hub)
        pipe = d.ModularPipeline.from_pretrained("alice/clip-guider")
        pipe.load_components("guider")
        assert type(pipe.guider) is cg.CLIPGuidance and type(pipe.guider.inner) is d.ClassifierFreeGuidance
        assert pipe.guider.config["clip"] == hub_models.GUIDE
        index = json.loads((hub / "alice" / "clip-guider" / "modular_model_index.json").read_text())
        kept = json.loads((hub / hub_models.SDXL / "model_index.json").read_text())
        named = {name for name, each in index.items() if isinstance(each, list) and each[2]["subfolder"]}
        assert named == {"guider", *(name for name, each in kept.items() if isinstance(each, list) and each[0])}


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": ["clip-jugde"]}, "--only clip-jugde: there is no such artefact; there are emoji-clip, emoji-judge"),
        ({"owner": "a b"}, "--owner a b: expected a name of the hub, of letters, digits, '-' and '_'"),
        ({"owner": ".."}, "--owner ..: expected a name of the hub"),
        ({"output": "there"}, "clip-judge: is there already; remove it, or write into another --output"),
        ({"output": "file"}, "file: cannot be written: "),
    ],
)
def test_what_the_command_cannot_do_is_said(builder, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there" / "alice" / "clip-judge").mkdir(parents=True)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=re.escape(message)) as caught:
        builder.main(builder.Settings(**{"output": "new", "owner": "alice", "only": ["clip-judge"], **options}))
    assert len(str(caught.value)) <= 300
    assert not (tmp_path / "new").exists()


def test_what_a_run_that_was_cut_off_left_is_no_artefact(builder, tmp_path, monkeypatch):
    monkeypatch.setitem(builder.ARTEFACTS, "clip-judge", lambda folder, owner: (folder / "README.md").write_text(owner))
    left = tmp_path / "alice" / "clip-judge.part"
    left.mkdir(parents=True)
    with pytest.raises(SystemExit, match="cannot be written"):  # this one makes no folder
        builder.main(builder.Settings(str(tmp_path), "alice", ["clip-judge"]))
    assert not left.exists() and not (tmp_path / "alice" / "clip-judge").exists()


def test_a_clip_is_a_component_of_a_modular_pipeline(tmp_path):
    spec = d.modular_pipelines.ComponentSpec("judge", cg.CLIP, pretrained_model_name_or_path=str(tmp_path))
    save_tiny_clip(tmp_path)
    clip = spec.load(dtype=torch.float64)
    assert type(clip) is cg.CLIP and clip.dtype is torch.float64
