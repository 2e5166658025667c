"""Models that only the open_clip library builds, by a tiny module of its name; and the sentence where it is absent."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers.factories import TEXTS, letter_tokenizer
from helpers.hub_caches import lay_out
from helpers.open_clip import OpenCLIP, save_tiny_open_clip
from PIL import Image
from safetensors.torch import load_file

from clip_guidance.clip import CLIP, ModelError


def change(folder: Path, tower: str, **settings: object) -> None:
    path = folder / "open_clip_config.json"
    described = json.loads(path.read_text())
    described["model_cfg"][tower] |= settings
    path.write_text(json.dumps(described))


@pytest.fixture
def timm(tmp_path):
    """A folder whose image tower is said to be timm's, and the model that is in it."""
    peer = save_tiny_open_clip(tmp_path / "timm", mean=[0.5] * 3, std=[0.5] * 3, resize_mode="squash")
    change(tmp_path / "timm", "vision_cfg", timm_model_name="fastvit_mci0")
    return tmp_path / "timm", peer


@pytest.fixture
def library(monkeypatch):
    """What open_clip does with a folder: a model from the weights in it, and a function that makes token ids."""
    fake = ModuleType("open_clip")
    fake.asked = []

    def create_model_from_pretrained(name, return_transform):
        assert name.startswith("local-dir:") and not return_transform
        folder = Path(name.removeprefix("local-dir:"))
        described = json.loads((folder / "open_clip_config.json").read_text())
        model = OpenCLIP(described["model_cfg"]).eval()
        model.load_state_dict(load_file(folder / "open_clip_model.safetensors"), strict=False)
        model.visual.image_size = (16, 16)
        model.visual.preprocess_cfg = {"size": (16, 16), "mode": "RGB", **described["preprocess_cfg"]}
        return model

    def get_tokenizer(name, cache_dir=None):
        fake.asked.append(name)
        return lambda texts: token_ids(texts)

    fake.create_model_from_pretrained, fake.get_tokenizer = create_model_from_pretrained, get_tokenizer
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    return fake


def token_ids(texts):
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return letter_tokenizer()(list(texts), **options).input_ids


def same(clip, peer) -> None:
    assert not isinstance(clip, CLIP)
    torch.testing.assert_close(clip.encode_text(TEXTS), peer.encode_text(token_ids(TEXTS)), rtol=0, atol=1e-6)
    image = torch.rand(1, 3, 24, 20, requires_grad=True)
    embeds = clip.image_embeds(clip.image_processor.differentiable(image))
    pixels = torch.nn.functional.interpolate(image, (16, 16), mode="bicubic", antialias=True).clamp(0, 1) * 2 - 1
    torch.testing.assert_close(embeds, peer.encode_image(pixels), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(embeds[0, 0], image)
    assert gradient.abs().sum() > 0 and clip.encode_image(Image.new("RGB", (30, 20), "red")).shape == (1, 12)


@torch.no_grad()
def test_a_folder_is_loaded_by_the_library(timm, library):
    folder, peer = timm
    with torch.enable_grad():
        same(CLIP.from_pretrained(folder), peer)
    assert library.asked == [f"local-dir:{folder}"]
    half = CLIP.from_pretrained(folder, dtype="bfloat16", tokenizer=letter_tokenizer())
    assert half.dtype == torch.bfloat16 and half.encode_text(TEXTS[:1]).dtype == torch.float32
    given = CLIP.from_pretrained(folder, tokenizer=letter_tokenizer())  # padded to the context, as the library needs it
    torch.testing.assert_close(given.encode_text(TEXTS), peer.encode_text(token_ids(TEXTS)), rtol=0, atol=1e-6)
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"its weights are pickled \(open_clip_pytorch_model.bin\)"):
        CLIP.from_pretrained(folder)


def test_a_repository_is_loaded_from_the_files_of_its_revision(timm, library, tmp_path):
    folder, peer = timm
    options = lay_out(tmp_path / "cache", "owner/timm", {"v1": folder})
    same(CLIP.from_pretrained("hf-hub:owner/timm", revision="v1", **options), peer)
    assert "/snapshots/" in library.asked[0]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    change(folder, "text_cfg", hf_tokenizer_name="other/words")
    options = lay_out(tmp_path / "other", "owner/timm", {"main": folder})
    same(CLIP.from_pretrained("owner/timm", **options), peer)
    assert library.asked[1] == "hf-hub:owner/timm"  # the library looks up the repository that the config names


@pytest.mark.parametrize(
    ("tower", "settings", "reason"),
    [
        ("vision_cfg", {"timm_model_name": "eva02_base"}, "its vision tower has timm_model_name 'eva02_base'"),
        ("vision_cfg", {"layers": [1, 1, 1, 1]}, "its vision tower is a ResNet of bottlenecks with attention pooling"),
        ("text_cfg", {"no_causal_mask": True}, "its text tower has no_causal_mask True"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "canonicalize"}}, "its text tower has tokenizer_kwargs"),
        ("text_cfg", {"norm_kwargs": {"bias": False}}, "its text tower has norm_kwargs"),
    ],
)
def test_without_the_library_one_sentence_says_what_to_install(tower, settings, reason, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    save_tiny_open_clip(tmp_path)
    change(tmp_path, tower, **settings)
    with pytest.raises(ModelError, match=rf"{reason}.*pip install clip-guidance\[open_clip\]") as caught:
        CLIP.from_pretrained(tmp_path)
    assert len(str(caught.value)) <= 300
