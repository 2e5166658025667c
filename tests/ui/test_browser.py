"""The page in a real browser, without a network: typed, moved, drawn, downloaded."""

import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from clip_guidance.generation.settings import read_settings

pytestmark = pytest.mark.slow

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'clip-guidance[ui]'")
pytest.importorskip("selenium", reason="driving a browser needs selenium, of the extra test")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,900"
)
PATIENCE = 180  # seconds: only a page that hangs waits so long


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    (folder / "secret.txt").write_text("secret")
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


@pytest.fixture
def browser(tmp_path):
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs Chromium and chromedriver: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_a_prompt_is_drawn_with_and_without_guidance_and_downloaded(browser, address, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def find(selector):
        return browser.find_element(By.CSS_SELECTOR, selector)

    def until(condition):
        return WebDriverWait(browser, PATIENCE, ignored_exceptions=[Exception]).until(lambda _: condition())

    def filled(selector, text):
        field = find(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, Keys.TAB)

    browser.get(address)
    until(lambda: find("#generate-prompt :is(textarea, input)").is_displayed())
    filled("#generate-prompt :is(textarea, input)", "a twemoji picture of a red apple")
    filled("#generate-steps input[type=number]", "2")
    slider = find("#generate-strength input[type=range]")
    before = float(slider.get_attribute("value"))
    slider.send_keys(Keys.ARROW_RIGHT * 3)
    strength = float(slider.get_attribute("value"))
    assert strength == before + 1.5
    find("#generate-draw").click()
    until(lambda: "which guided it" in find("#generate-guided-caption").text)

    sources = [find(f"#generate-{name} img").get_attribute("src") for name in ("without", "guided")]
    images = [urllib.request.urlopen(source).read() for source in sources]
    assert images[0] != images[1] and all(image.startswith(b"\x89PNG") for image in images)
    folder, settings = tmp_path / "downloads", {}
    for name, scale in (("without", 0.0), ("guided", strength)):
        known = set(folder.glob("*.png"))
        until(lambda name=name: find(f"#generate-{name}-file").is_enabled())
        find(f"#generate-{name}-file").click()
        (path,) = until(lambda known=known: set(folder.glob("*.png")) - known)
        settings[name] = read_settings(path)
        assert settings[name].prompt == "a twemoji picture of a red apple" and settings[name].steps == 2
        assert settings[name].scale == scale
    assert settings["without"].seed == settings["guided"].seed

    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith((f"{address}/", "data:", "blob:"))] == []


def test_the_server_hands_out_no_file_of_this_machine(address, root):
    for path in (root / "secret.txt", Path("/etc/passwd"), Path(__file__)):
        with pytest.raises(urllib.error.HTTPError, match="403|404"):
            urllib.request.urlopen(f"{address}/gradio_api/file={path}")


def test_a_taken_port_is_told(address, root):
    port = address.rpartition(":")[2]
    words = [sys.executable, "-m", "clip_guidance.cli.main", "ui", "--port", port]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and f"error: Cannot find empty port in range: {port}-{port}" in done.stderr
