"""The state of a page with the packaged models, which are loaded once, and a page that is served to a browser."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import CHROMIUM, DRIVER, FLAGS, Page
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


# In a browser


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("root") / "archive"  # the page shows the name
    folder.mkdir()
    (folder / "secret.txt").write_text("secret")
    (folder / "photos").mkdir()
    from clip_guidance.ui.state import EXAMPLES

    for image in EXAMPLES.glob("*.png"):
        (folder / "photos" / image.name).write_bytes(image.read_bytes())
    return folder


@pytest.fixture(scope="module")
def address(root, tmp_path_factory):
    """A server of its own process, at a free port of this machine."""
    temporary = tmp_path_factory.mktemp("temporary")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "clip_guidance.cli.main", "ui", "--port", str(port), "--root", str(root)]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(words, cwd=root, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            said = server.stderr.readline()
            assert said == f"page: http://127.0.0.1:{port}/\n", said + server.stderr.read()
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            said = server.communicate()[1]
    assert server.returncode == 0 and said.endswith("page: closed\n")
    assert not list(temporary.glob("clip_guidance-*"))  # what was uploaded and drawn is gone


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(tmp_path_factory, downloads):
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs Chromium and chromedriver: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, address, pytestconfig):
    images = pytestconfig.rootpath / "docs" / "images" / "page" if pytestconfig.getoption("--write-docs") else None
    return Page(driver, address, images)
