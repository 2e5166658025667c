"""Preprocessing equals transformers' on images, and its tensor form equals it up to 8-bit rounding."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import transformers
from helpers.limits import little_memory
from hypothesis import given
from PIL import Image
from transformers import CLIPImageProcessorPil

from clip_guidance.clip.image_processor import ImageProcessor

SIZES = [(64, 64), (20, 16), (50, 81), (81, 50), (31, 200), (224, 223)]  # width, height


def image(size: tuple[int, int]) -> Image.Image:
    """Smooth, with an edge: noise would make 8-bit rounding the whole difference."""
    x, y = np.meshgrid(np.linspace(0, 3, size[0]), np.linspace(0, 2, size[1]))
    array = np.stack([np.sin(x + y) * 100 + 128, np.where(x > y, 220, 30), np.cos(3 * x) * 90 + 120], -1)
    return Image.fromarray(array.astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
def test_equals_transformers(size):
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    ours = ImageProcessor(32, tuple(theirs.image_mean), tuple(theirs.image_std), resize_to=40)
    expected = theirs(image(size), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(ours(image(size)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_tensor_form_equals_image_form(size):
    ours = ImageProcessor(32)
    tensor = torch.from_numpy(np.array(image(size))).permute(2, 0, 1)[None].float() / 255
    difference = (ours.differentiable(tensor)[0] - ours(image(size))).abs()
    assert difference.max() <= 2.5 / 127.5  # PIL rounds to 8 bits after each of its two passes


SIDES = st.integers(1, 40) | st.integers(1, 600)


@given(SIDES, SIDES, st.integers(1, 16), st.integers(0, 8), st.sampled_from([2, 3]))
def test_any_ratio_equals_transformers(width, height, crop, more, resample):
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    sizes = {"size": {"shortest_edge": crop + more}, "crop_size": {"height": crop, "width": crop}}
    theirs = CLIPImageProcessorPil(**sizes, resample=resample, image_mean=[0.0] * 3, image_std=[1 / 255] * 3)
    ours = ImageProcessor(crop, (0.0,) * 3, (1 / 255,) * 3, crop + more, resample)
    expected = theirs(Image.fromarray(noise), return_tensors="pt").pixel_values[0]
    # A span that is no whole number of pixels is rounded to float32 by PIL, so that an 8-bit value may round otherwise.
    slender = max(width, height) > 8 * min(width, height)
    torch.testing.assert_close(ours(Image.fromarray(noise)), expected, rtol=0, atol=1.001 if slender else 1e-3)


@pytest.mark.parametrize("turned", [False, True])
def test_a_slender_image_takes_no_more_memory_than_its_output(turned):
    line = np.random.default_rng(0).integers(0, 256, (1, 1_000_000, 3), dtype=np.uint8)
    middle = line[:, 499_500:500_500]
    slender, short = (Image.fromarray(part.transpose(1, 0, 2) if turned else part) for part in (line, middle))
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    ours = ImageProcessor(24, tuple(theirs.image_mean), tuple(theirs.image_std))
    expected = theirs(short, return_tensors="pt").pixel_values[0]  # the whole would be 24 by 24,000,000 pixels
    with little_memory(64 << 20):
        found = ours(slender)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)  # a level of 255 is 0.015


def test_round_trip_through_json(tmp_path):
    ours = ImageProcessor(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resize_to=36)
    ours.save_pretrained(tmp_path)
    assert ImageProcessor.from_json(tmp_path / "preprocessor_config.json") == ours


def test_old_and_odd_configs(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    old = {"size": 224, "crop_size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    path.write_text(json.dumps(old))
    assert ImageProcessor.from_json(path) == ImageProcessor(224)
    path.write_text(json.dumps({**old, "do_center_crop": False}))
    with pytest.raises(ValueError, match="do_center_crop is false"):
        ImageProcessor.from_json(path)


def test_errors_name_what_arrived():
    with pytest.raises(ValueError, match=r"shape \(B, 3, H, W\), got \(3, 8, 8\)"):
        ImageProcessor(8).differentiable(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="expected 2 .* or 3 .*, got 0"):
        ImageProcessor(8, resample=0)
    with pytest.raises(ValueError, match="image_size: expected 1 to resize_to=8, got 9"):
        ImageProcessor(9, resize_to=8)


# Reading preprocessor_config.json

_MEANS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@pytest.mark.parametrize(
    "config",
    [
        {"size": {"height": 32, "width": 32}, "crop_size": {"height": 32, "width": 32}},
        {"size": {"height": 40, "width": 36}, "crop_size": 32},
        {"size": [32, 32], "crop_size": [32, 32]},
        {"size": [32, 32], "do_center_crop": False},
        {"size": 36, "crop_size": 32, "image_mean": [0.1, 0.2, 0.3]},
        {"size": 32, "crop_size": 32, "resample": 2, "image_processor_type": "CLIPFeatureExtractor"},
        {},
    ],
)
def test_configs_of_any_form_are_read_as_transformers_does(config, tmp_path):
    """What is left out, mean and deviation among it, is transformers' default; a size of two sides stretches."""
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(config))
    ours = ImageProcessor.from_json(path)
    theirs = CLIPImageProcessorPil.from_pretrained(tmp_path)
    for size in SIZES[:4]:
        expected = theirs(image(size), return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(ours(image(size)), expected, rtol=0, atol=1e-6)
    ours.save_pretrained(tmp_path / "again")
    assert ImageProcessor.from_json(tmp_path / "again" / "preprocessor_config.json") == ours


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_rescale": False}, "do_rescale is false"),
        ({"rescale_factor": 0.0}, "rescale_factor: expected a number above 0, got 0.0"),
        ({"do_pad": True}, "do_pad is true"),
        ({"crop_size": {"height": 224, "width": 200}}, "crop_size: expected a square"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "size: expected shortest_edge, .*got longest_edge"),
        ({"size": 200}, "image_size: expected 1 to resize_to=200, got 224"),
        ({"image_processor_type": "Owlv2ImageProcessor"}, "expected a class that resizes, crops .*, got 'Owlv2Image"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std: expected 3 finite numbers above 0"),
        ({"image_processor": []}, "image_processor: expected a JSON object"),
    ],
)
def test_what_clips_preprocessing_does_not_do_is_refused(config, message, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**_MEANS, **config}))
    with pytest.raises(ValueError, match=f"preprocessor_config.json: .*{message}"):
        ImageProcessor.from_json(tmp_path / "preprocessor_config.json")


_ALIGN = {
    **{"size": {"height": 46, "width": 46}, "crop_size": {"height": 39, "width": 39}, "do_center_crop": True},
    **{"do_normalize": False, "include_top": False, "resample": 2, "rescale_factor": 1 / 127.5, "rescale_offset": True},
}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("SiglipImageProcessor", {}),
        ("ChineseCLIPImageProcessor", {"crop_size": 200}),
        ("BitImageProcessor", {}),
        ("ViTImageProcessor", {"size": 48, "do_normalize": False}),
        ("DeiTImageProcessor", {}),
        ("EfficientNetImageProcessor", {"size": 48}),
        ("EfficientNetImageProcessor", _ALIGN),
    ],
)
def test_a_config_is_read_as_the_class_that_it_names(name, config):
    """What is left out is that class's default, under any of its names, and both forms equal it."""
    theirs = getattr(transformers, f"{name}Pil")(**config)
    expected = theirs(image((50, 41)), return_tensors="pt").pixel_values[0]
    tensor = torch.from_numpy(np.array(image((50, 41)))).permute(2, 0, 1)[None] / 255
    for named in (name, f"{name}Fast", name.replace("ImageProcessor", "FeatureExtractor")):
        ours = ImageProcessor.from_dict({"image_processor_type": named, **config})
        torch.testing.assert_close(ours(image((50, 41))), expected, rtol=0, atol=1e-6)
    levels = (ours.differentiable(tensor)[0] - expected).abs() * torch.tensor(ours.image_std)[:, None, None] * 255
    assert levels.round().max() <= 1  # whole grey levels: PIL rounds to them, after each of its two passes


_ANY = st.one_of(st.none(), st.booleans(), st.integers(-1, 50), st.integers(), st.floats(), st.text(max_size=9))
_SIDES = st.one_of(
    st.integers(1, 50),
    st.lists(st.integers(1, 50), min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(["height", "width", "shortest_edge", "longest_edge"]), st.integers(1, 50)),
    _ANY,
)
_THREE = st.one_of(_ANY, st.lists(st.floats(-2, 2), min_size=3, max_size=3), st.lists(_ANY, max_size=4))
_CONFIGS = st.fixed_dictionaries(
    {"size": _SIDES, "crop_size": _SIDES},
    optional={
        **dict.fromkeys(["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad"], _ANY),
        **dict.fromkeys(["image_mean", "image_std"], _THREE),
        **dict.fromkeys(["rescale_factor", "default_to_square", "image_processor_type"], _ANY),
        "resample": st.one_of(st.sampled_from([2, 3]), _ANY),
    },
)
_USUAL = st.fixed_dictionaries(
    {"size": st.integers(20, 40), "crop_size": st.integers(16, 20)}, optional={"resample": st.sampled_from([2, 3])}
)


@given(st.one_of(_CONFIGS, _USUAL))
def test_any_config_preprocesses_as_transformers_or_is_refused(config):
    try:
        ours = ImageProcessor.from_dict(config)
    except ValueError as error:
        assert len(str(error)) <= 300
        return
    theirs = CLIPImageProcessorPil(**config)
    expected = theirs(image((50, 41)), return_tensors="pt").pixel_values[0]
    slender = max(ours.sides) > 8 * min(ours.sides)  # there PIL may round an 8-bit value otherwise
    level = 1.001 / 255 / min(ours.image_std) if slender else 1e-6
    torch.testing.assert_close(ours(image((50, 41))), expected, rtol=1e-5, atol=level)
