"""Preprocessing equals transformers' on images, and its tensor form equals it up to 8-bit rounding."""

import json

import numpy as np
import pytest
import torch
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
