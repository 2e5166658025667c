"""Tiny judges and images for the scoring tests."""

import numpy as np
import pytest
from helpers.factories import save_tiny_clip
from PIL import Image

from clip_guidance.clip import CLIP


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    return CLIP.from_pretrained(save_tiny_clip(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def other_clip(tmp_path_factory):
    return CLIP.from_pretrained(save_tiny_clip(tmp_path_factory.mktemp("other"), seed=1))


@pytest.fixture
def many(tmp_path):
    """A folder of 21 images, the ninth of them corrupt."""
    folder = tmp_path / "many"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(21):
        Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    (folder / "08.png").write_bytes(b"no image")
    return folder
