"""Folders and repositories of open_clip: weights, tokenizer and preprocessing are those that open_clip takes."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers.factories import TEXTS, letter_tokenizer, save_tiny_clip
from helpers.hub_caches import lay_out
from helpers.open_clip import OpenCLIP, save_tiny_open_clip
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file

from clip_guidance.clip import CLIP, ModelError
from clip_guidance.clip.image_processor import CLIP_MEAN, CLIP_STD
from clip_guidance.clip.open_clip.preprocessing import describe_preprocessing, read_preprocessing

exact = {"rtol": 0, "atol": 1e-6}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of open_clip, and the model in it."""
    folder = tmp_path_factory.mktemp("open_clip") / "clip"
    return folder, save_tiny_open_clip(folder, mean=[0.1, 0.2, 0.3])


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(saved[0], tmp_path / "clip")


def same(clip: CLIP, peer: OpenCLIP) -> None:
    ids = letter_tokenizer()(TEXTS, padding="max_length", return_tensors="pt").input_ids
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_text(TEXTS), peer.encode_text(ids), **exact)
        torch.testing.assert_close(clip.image_embeds(pixels), peer.encode_image(pixels), **exact)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_and_a_repository_equal_open_clip(saved, tmp_path):
    folder, peer = saved
    clip = CLIP.from_pretrained(folder)
    same(clip, peer)
    assert clip.image_processor.image_mean == (0.1, 0.2, 0.3) and clip.image_processor.image_std == CLIP_STD
    assert clip.tokenizer.model_max_length == 40 and clip.text_encoder.to_clip_text_model() is not None
    options = lay_out(tmp_path, "owner/clip", {"main": folder})
    for name in ("hf-hub:owner/clip", "owner/clip"):
        same(CLIP.from_pretrained(name, **options), peer)


def test_other_names_of_files_are_known(saved, folder):
    """timm's repositories have a config.json of their own, and weights may be named as transformers names them."""
    (folder / "open_clip_model.safetensors").rename(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16_clip_224"}))
    same(CLIP.from_pretrained(folder), saved[1])
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights in safetensors: expected open_clip_model.safetensors or mod"):
        CLIP.from_pretrained(folder)


def test_a_clip_of_transformers_beside_it_comes_first(saved, folder):
    save_tiny_clip(folder)
    assert CLIP.from_pretrained(folder).image_processor.image_size == 32  # that of open_clip reads 16 pixels


def test_the_tokenizer_is_the_named_one_or_openais(saved, folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    same(CLIP.from_pretrained(folder, tokenizer=letter_tokenizer()), saved[1])
    letter_tokenizer().save_pretrained(tmp_path / "tokenizer")
    for name in ("openai/clip-vit-large-patch14", "other/words"):
        offline = {"cache_dir": tmp_path / name.replace("/", "-"), "local_files_only": True}
        with pytest.raises(ModelError, match=rf'of {name}; give tokenizer=.*from_pretrained\("{name}"\)') as caught:
            CLIP.from_pretrained(folder, **offline)
        assert len(str(caught.value)) <= 300
        lay_out(offline["cache_dir"], name, {"main": tmp_path / "tokenizer"})
        same(CLIP.from_pretrained(folder, **offline), saved[1])
        cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
        text = {**cfg["text_cfg"], "hf_tokenizer_name": "other/words"}
        edit(folder / "open_clip_config.json", model_cfg={**cfg, "text_cfg": text})


def test_weights_that_do_not_fit_are_named(folder):
    path = folder / "open_clip_model.safetensors"
    weights = load_file(path)
    save_file({name: tensor for name, tensor in weights.items() if name != "ln_final.bias"}, path)
    with pytest.raises(ModelError, match="weights missing from it: text_encoder.text_model.final_layer_norm.bias"):
        CLIP.from_pretrained(folder)
    extra = {name.replace(".1.", ".2."): tensor.clone() for name, tensor in weights.items() if "resblocks.1." in name}
    save_file({**weights, **extra}, path)
    with pytest.raises(ModelError, match=r"weights left over: .*encoder.layers.2"):
        CLIP.from_pretrained(folder)
    edit(folder / "open_clip_config.json", model_cfg=None)
    with pytest.raises(ModelError, match="open_clip_config.json has no model_cfg"):
        CLIP.from_pretrained(folder)


def resized_by_open_clip(image: Image.Image, size: int, mode: str, fill: int) -> Image.Image:
    """open_clip's transform.py and torchvision's Resize and CenterCrop, written out with PIL."""
    width, height = image.size
    if mode == "squash":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    if mode == "longest":
        ratio = max(width, height) / size
        sides = (round(width / ratio), round(height / ratio))
        padded = Image.new("RGB", (size, size), (fill,) * 3)
        padded.paste(image.resize(sides, Image.Resampling.BICUBIC), tuple((size - side) // 2 for side in sides))
        return padded
    short, long = sorted(image.size)
    sides = (size, int(size * long / short)) if width == short else (int(size * long / short), size)
    left, top = (round((side - size) / 2.0) for side in sides)
    return image.resize(sides, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_preprocessing_is_open_clips(mode, tmp_path):
    ours = read_preprocessing({"resize_mode": mode, "fill_color": 90, "interpolation": None}, 16)
    generator = np.random.default_rng(0)
    for size in ((37, 30), (30, 38), (16, 19), (23, 16), (50, 16)):
        noise = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
        image = noise.filter(ImageFilter.GaussianBlur(1))  # PIL clips between its passes where the filter overshoots
        pixels = torch.from_numpy(np.array(resized_by_open_clip(image, 16, mode, 90))).permute(2, 0, 1) / 255
        expected = (pixels - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None]
        torch.testing.assert_close(ours(image), expected, **exact)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        torch.testing.assert_close(ours.differentiable(tensor)[0], expected, rtol=0, atol=1.01 / 255 / min(CLIP_STD))
    assert read_preprocessing(describe_preprocessing(ours), 16) == ours
    if mode != "longest":  # preprocessor_config.json has no form for padding
        ours.save_pretrained(tmp_path)
        assert type(ours).from_json(tmp_path / "preprocessor_config.json") == ours


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"interpolation": "nearest"}, "interpolation: expected bicubic or bilinear or random, got 'nearest'"),
        ({"resize_mode": "crop"}, "resize_mode: expected shortest, squash or longest, got 'crop'"),
        ({"std": 0}, "image_std: expected 3 finite numbers above 0"),
        ({"resize_mode": "longest", "fill_color": 300}, "fill: expected a grey level from 0 to 255, got 300"),
    ],
)
def test_preprocessing_that_there_is_not_is_named(cfg, message):
    with pytest.raises(ValueError, match=message):
        read_preprocessing(cfg, 16)
