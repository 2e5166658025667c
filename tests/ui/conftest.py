"""A studio with the packaged models, loaded once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def studio(tmp_path_factory):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'clip-guidance[ui]'")
    from clip_guidance.ui.studio import Studio

    root = tmp_path_factory.mktemp("root")
    return Studio("emoji", None, "cpu", root, tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="session")
def files(studio) -> list[tuple[str, None]]:
    """Three images and a broken one, as a gallery gives them."""
    folder = studio.root / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png", "<i>c.png"):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / name)
    (folder / "z broken.png").write_bytes(b"")
    return [(str(path), None) for path in sorted(Path(folder).iterdir())]
