"""The state of a page with the packaged models, which are loaded once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def state(tmp_path_factory):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'clip-guidance[ui]'")
    from clip_guidance.ui.state import AppState

    root = tmp_path_factory.mktemp("root")
    return AppState("emoji", None, "cpu", root, tmp_path_factory.mktemp("downloads"))


@pytest.fixture(scope="session")
def files(state) -> list[tuple[str, None]]:
    """Return three images and a broken one, as a gallery passes them."""
    folder = state.root / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png", "<i>c.png"):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / name)
    (folder / "z broken.png").write_bytes(b"")
    return [(str(path), None) for path in sorted(Path(folder).iterdir())]
