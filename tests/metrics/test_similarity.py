"""Similarity of images: against transformers on the same weights, and as any cosine matrix must be."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.factories import save_tiny_clip
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel

from clip_guidance.clip import CLIP
from clip_guidance.images.load import ImageError
from clip_guidance.metrics.similarity import duplicate_images, image_similarity


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder) -> CLIP:
    return CLIP.from_pretrained(folder)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    random = np.random.default_rng(1)
    return [Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(5)]


def test_equals_transformers(folder, clip, images):
    model, processor = CLIPModel.from_pretrained(folder), CLIPImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        pixels = processor(images, return_tensors="pt").pixel_values
        embeds = model.visual_projection(model.vision_model(pixels).pooler_output)
    expected = torch.cosine_similarity(embeds[:2, None], embeds[None, 2:], dim=-1)
    similarity = image_similarity(clip, images[:2], images[2:])
    assert similarity.shape == (2, 3)
    torch.testing.assert_close(similarity, expected, rtol=1e-4, atol=1e-5)
    assert similarity.std() > 0.01


def test_with_itself_it_is_symmetric_with_ones_on_the_diagonal(clip, images):
    similarity = image_similarity(clip, images)
    torch.testing.assert_close(similarity, similarity.T)
    torch.testing.assert_close(similarity.diagonal(), torch.ones(5))
    assert similarity.abs().max() <= 1
    torch.testing.assert_close(similarity, image_similarity(clip, images, images, batch_size=2))


def test_one_list_is_encoded_once(clip, images, monkeypatch):
    calls = []
    encode = clip.encode_image
    monkeypatch.setattr(clip, "encode_image", lambda *args, **kwargs: calls.append(1) or encode(*args, **kwargs))
    image_similarity(clip, images)
    assert len(calls) == 1


def test_sources_may_be_mixed(clip, images, tmp_path):
    images[0].save(tmp_path / "a.png")
    mixed = [tmp_path / "a.png", np.asarray(images[0]), (tmp_path / "a.png").read_bytes()]
    torch.testing.assert_close(image_similarity(clip, images[0], mixed), torch.ones(1, 3))


def test_a_bad_image_is_named(clip, tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        image_similarity(clip, tmp_path / "gone.png")


def test_duplicates_are_found_wherever_they_stand(clip, images):
    assert duplicate_images(clip, images, 0.9999) == []
    assert duplicate_images(clip, [*images, images[3], images[1], images[3]], 0.9999) == [[1, 6], [3, 5, 7]]
    lowest = image_similarity(clip, images).min().item()
    assert duplicate_images(clip, images, max(lowest, 1e-3)) == [[0, 1, 2, 3, 4]]
    with pytest.raises(ValueError, match=r"threshold: expected a cosine in \(0, 1\], got 2"):
        duplicate_images(clip, images, 2)
