"""``clip-guidance convert``: there and back, and what it refuses."""

import itertools
import json

import pytest
import torch
from helpers.factories import TEXTS
from helpers.open_clip import OpenCLIP
from safetensors.torch import load_file
from transformers import CLIPModel

from clip_guidance.clip import CLIP


@pytest.mark.slow
def test_from_transformers_to_open_clip_to_ours_and_back(cli, clip, tmp_path):
    steps = [clip, *(tmp_path / name for name in ("open_clip", "clip_guidance", "transformers"))]
    for source, target in itertools.pairwise(steps):
        done = cli("convert", source, target, "--to", target.name, "--json")
        assert done.code == 0 and done.json["folder"] == str(target) and done.json["format"] == target.name
        assert done.json["bytes"] == sum(file.stat().st_size for file in target.iterdir())
    peer = OpenCLIP(json.loads((steps[1] / "open_clip_config.json").read_text())["model_cfg"])
    peer.load_state_dict(load_file(steps[1] / "open_clip_model.safetensors"), strict=False)
    first, last = (CLIPModel.from_pretrained(folder).state_dict() for folder in (clip, steps[-1]))
    assert first.keys() == last.keys() and all(first[name].equal(last[name]) for name in first)
    pixels, loaded = torch.randn(1, 3, 32, 32), CLIP.from_pretrained(steps[2])
    torch.testing.assert_close(loaded.image_embeds(pixels), peer.eval().encode_image(pixels), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        loaded.encode_text(TEXTS), CLIP.from_pretrained(clip).encode_text(TEXTS), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(
            ["emoji", "new", "--to", "transformers"],
            "transformers has no CLIP with a convolutional stem",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["emoji-judge", "new", "--to", "open_clip"],
            "open_clip has no CLIP with an image tower that is a ResNet",
            marks=pytest.mark.slow,
        ),
        (["CLIP", "FULL", "--to", "open_clip"], "is not an empty folder; nothing is overwritten"),
        (["CLIP", "new", "--to", "transformers", "--repository", "a/b"], "--repository is for --to open_clip"),
        (["CLIP", "new", "--to", "timm"], "'timm' is not one of 'transformers', 'open_clip', 'clip_guidance'"),
        (["CLIP", "new"], "Missing option"),
    ],
)
def test_what_is_not_converted_exits_with_2(cli, clip, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli("convert", *({"CLIP": clip, "FULL": clip}.get(word, word) for word in words))
    assert (done.code, done.out) == (2, "") and message in " ".join(done.err.replace("│", " ").split())
    assert not (tmp_path / "new").exists()
