"""Images with awkward names, each of one colour of its own, and a result that classifies them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from clip_guidance.zero_shot.classifier import ZeroShotResult

NAMES = ["a.png", 'quote" onerror="x.png', "<script>alert(1)<|script>.png", "日本 ünï مرحبا.png", "a & b &amp; c.png"]
LABELS = ("cat", "<script>alert(1)</script>", 'dog" style="x', "&lt;b&gt;", "苹果")


@pytest.fixture
def photos(tmp_path) -> list[Path]:
    for number, name in enumerate(NAMES):
        Image.new("RGB", (40 + number, 30), (50 * number, 20, 250 - 50 * number)).save(tmp_path / name)
    return [tmp_path / name for name in NAMES]


@pytest.fixture
def result(photos) -> ZeroShotResult:
    logits = 3 * torch.randn(len(photos), len(LABELS), generator=torch.Generator().manual_seed(0))
    return ZeroShotResult(LABELS, logits, logits.softmax(-1))
