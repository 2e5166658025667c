"""The page in a real browser, without a network: typed, drawn, stopped, searched, in a wide and in a narrow window.

With ``--full --write-docs`` it writes the images of docs/guides/browser.md.
"""

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from helpers.browser import CHROMIUM, DRIVER, FLAGS, TEXT, Page

from clip_guidance.generation.settings import read_settings
from clip_guidance.ui.state import EXAMPLES

pytestmark = pytest.mark.slow

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'clip-guidance[ui]'")
pytest.importorskip("selenium", reason="driving a browser needs selenium, of the extra test")
WIDE, NARROW = (1280, 900), (390, 844)
both = pytest.mark.parametrize("window", [WIDE, NARROW], ids=["wide", "narrow"])
NUMBERS = ["seed", "images", "strength", "guidance-scale", "steps", "best-of", "particles", "damping"]
FIELDS = {  # by tab, the buttons that Enter presses in the fields of one line
    "Generate": dict.fromkeys(["prompt", "negative", *NUMBERS], "generate-draw"),
    "Search": dict.fromkeys(["text", "where", "count", "index"], "search-start") | {"folder": "search-build"},
}
MISSING = {"generate-draw": "Prompt is empty", "search-start": "Index: there is no", "search-build": "Images is empty"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("root") / "archive"  # the page shows the name
    folder.mkdir()
    (folder / "secret.txt").write_text("secret")
    (folder / "photos").mkdir()
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


def alert(page, notice: str) -> str:
    """Return the one error that is told."""
    (shown,) = page.all("[role=alert]")
    assert shown.find_element("xpath", f"ancestor::*[@id='{notice}']")
    return shown.text


def test_a_prompt_is_drawn_with_and_without_guidance_and_downloaded(page, address, downloads):
    from selenium.webdriver.common.keys import Keys

    page.open(*WIDE)
    page.type(f"#generate-prompt {TEXT}", "a twemoji picture of a red apple", Keys.TAB)
    page.click("#generate-more button")
    page.until(lambda: page.find("#generate-steps input").is_displayed())
    page.type("#generate-steps input", "2", Keys.TAB)
    page.type("#generate-best-of input", "2", Keys.TAB)
    page.upload("#generate-targets", EXAMPLES / "red apple.png")
    slider = page.find("#generate-strength input[type=range]")
    before = float(slider.get_attribute("value"))
    slider.send_keys(Keys.ARROW_RIGHT * 3)
    strength = float(slider.get_attribute("value"))
    assert strength == before + 1.5
    page.click("#generate-draw")
    page.until(lambda: "which guided and chose it" in page.find("#generate-guided-caption").text)

    sources = [page.find(f"#generate-{name} img").get_attribute("src") for name in ("without", "guided")]
    images = [urllib.request.urlopen(source).read() for source in sources]
    assert images[0] != images[1] and all(image.startswith(b"\x89PNG") for image in images)
    settings = {}
    for name, scale in (("without", 0.0), ("guided", strength)):
        known = set(downloads.glob("*.png"))
        page.until(lambda name=name: page.find(f"#generate-{name}-file").is_enabled())
        page.click(f"#generate-{name}-file")
        (path,) = page.until(lambda known=known: set(downloads.glob("*.png")) - known)
        settings[name] = read_settings(path)
        assert settings[name].prompt == "a twemoji picture of a red apple" and settings[name].steps == 2
        assert settings[name].scale == scale
        (target,) = settings[name].clip_images
        assert Path(target.path).name == "red apple.png"

    loaded = page.js("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith((f"{address}/", "data:", "blob:"))] == []


@both
def test_examples_dice_progress_and_history(page, window):
    from selenium.webdriver.common.keys import Keys

    page.open(*window)
    page.until(lambda: "two images from the same noise" in page.find("#generate-progress").text)
    page.shot("generate-start")
    page.click("#generate-examples button:last-of-type")
    page.until(lambda: page.value(f"#generate-prompt {TEXT}") == "a noto picture of a dog face")
    seeds = {page.value("#generate-seed input")}
    for _ in range(2):
        page.click("#generate-dice")
        seeds.add(page.until(lambda: {page.value("#generate-seed input")} - seeds).pop())
    assert len(seeds) == 3 and all(0 <= int(seed) < 2**31 for seed in seeds)
    page.type("#generate-seed input", "5", Keys.TAB)
    count = 2 if window == WIDE else 1
    page.type("#generate-images input", str(count), Keys.TAB)
    page.click("#generate-more button")
    page.until(lambda: page.find("#generate-steps input").is_displayed())
    steps = "6" if page.images else "60"  # so many that the bar is seen on the way
    page.type("#generate-steps input", steps, Keys.ENTER)
    bar = "#generate-progress progress"

    def is_drawing():  # all of it at one moment, since a fast machine is soon done
        button = page.find("#generate-draw")
        value, end = page.js("return [arguments[0].value, arguments[0].max]", page.find(bar))
        told = f" of {steps}" in page.find("#generate-progress").text and page.is_in_sight(bar)
        return button.text == "Drawing…" and not button.is_enabled() and told and 0 < value < end

    page.until(is_drawing)
    page.shot("generate-busy")
    page.ready("generate-draw")
    thumbnails = page.all("#generate-history .thumbnail-item")
    assert len(thumbnails) == count and page.find("#generate-progress").text == ""
    page.js("scrollTo(0, 0)" if window == WIDE else "arguments[0].scrollIntoView()", page.find(".cg-result"))
    page.until(lambda: page.is_in_sight("#generate-guided img"))
    page.shot("generate")

    page.type(f"#generate-prompt {TEXT}", "another", Keys.TAB)
    page.all("#generate-history .thumbnail-item")[-1].click()  # newest first
    page.until(lambda: page.value(f"#generate-prompt {TEXT}") == "a noto picture of a dog face")
    page.until(lambda: page.value("#generate-seed input") == "5" and page.value("#generate-images input") == "1")
    page.until(lambda: "which guided it" in page.find("#generate-guided-caption").text)
    assert page.value(f"#generate-damping {TEXT}") == ""  # the default, where gradio's field for numbers would say 0


def test_a_run_can_be_stopped(page):
    from selenium.webdriver.common.keys import Keys

    page.open(*WIDE)
    page.click("#generate-more button")
    page.until(lambda: page.find("#generate-steps input").is_displayed())
    assert not page.find("#generate-stop").is_enabled()
    page.type("#generate-steps input", "1000", Keys.TAB)
    page.type("#generate-best-of input", "64", Keys.ENTER)
    page.until(lambda: page.find("#generate-without-caption").text.startswith("step"))
    page.js(
        "const stop = document.querySelector('#generate-stop'); window.said = [];"
        "new MutationObserver(() => said.push(stop.innerText))"
        ".observe(stop, {subtree: true, childList: true, characterData: true})"
    )
    page.click("#generate-stop")
    page.ready("generate-draw")
    assert "Stopping…" in page.js("return said")
    assert page.find("#generate-without-caption").text.startswith("stopped at step")
    assert "Draw begins anew" in page.find("#generate-notice").text and not page.all("#generate-progress progress")
    assert page.find("#generate-stop").text == "Stop" and not page.find("#generate-stop").is_enabled()


@both
def test_one_error_is_told_and_goes_when_its_field_is_corrected_or_with_time(page, window):
    from selenium.webdriver.common.keys import Keys

    page.open(*window)
    page.type("#generate-seed input", "1.5", Keys.ENTER)
    page.until(lambda: alert(page, "generate-notice") == "Seed must be a whole number, got 1.5")
    page.ready("generate-draw")
    page.type(f"#generate-prompt {TEXT}", "", Keys.ENTER)
    page.until(lambda: alert(page, "generate-notice").startswith("Prompt is empty: type what is to be drawn"))
    page.ready("generate-draw")
    page.until(lambda: page.is_in_sight("[role=alert]"))
    page.shot("generate-error")
    page.type(f"#generate-prompt {TEXT}", "a noto picture of a rocket")
    page.until(lambda: not page.all("[role=alert]"))
    assert not page.all(".toast-body")

    page.type(f"#generate-prompt {TEXT}", "", Keys.ENTER)
    page.until(lambda: page.find("[role=alert]").is_displayed())
    page.js("document.getAnimations().forEach(each => each.finish())")  # which the page does after 20 seconds
    page.until(lambda: not page.find("[role=alert]").is_displayed())


@both
@pytest.mark.parametrize("tab", FIELDS)
def test_enter_in_every_field_of_one_line_presses_its_button(page, window, tab):
    from selenium.webdriver.common.keys import Keys

    page.open(*window)
    page.tab(tab)
    for more in page.all(f"#{tab.lower()}-more button"):
        page.click(f"#{more.find_element('xpath', 'ancestor::*[@id][1]').get_attribute('id')} button")
    selector = "input:not([role], [type=range], [type=checkbox], [type=file]), textarea[rows='1']"
    script = "return [...document.querySelectorAll(arguments[0])].filter(each => each.offsetParent).length"
    page.until(lambda: page.js(script, selector) == len(FIELDS[tab]))
    if tab == "Generate":
        page.type(f"#generate-prompt {TEXT}", "", Keys.TAB)
    for name, button in FIELDS[tab].items():  # each run is refused: the prompt, the index or the folder is missing
        page.js("document.querySelectorAll('[role=alert]').forEach(each => each.removeAttribute('role'))")
        page.find(f"#{tab.lower()}-{name} {TEXT}").send_keys(Keys.ENTER)
        notice = button.replace("start", "notice").replace("draw", "notice").replace("build", "build-notice")
        assert page.until(lambda notice=notice: alert(page, notice)).startswith(MISSING[button])
        page.ready(button)


@both
@pytest.mark.parametrize(
    ("tab", "part", "count", "missing"),
    [("Classify", ".bar", 9, "Labels is empty"), ("Compare", ".shade", 6, "First set: there is no image yet")],
)
def test_an_example_is_judged_where_the_eye_is(page, window, tab, part, count, missing):
    name = tab.lower()
    page.open(*window)
    page.tab(tab)
    page.until(lambda: tab in page.find(f"#{name}-result .cg-empty").text)
    page.shot(f"{name}-start")
    page.click(f"#{name}-start")
    page.until(lambda: alert(page, f"{name}-notice").startswith(missing))
    page.until(lambda: page.is_in_sight("[role=alert]"))
    page.shot(f"{name}-error")
    if tab == "Compare":
        page.upload("#compare-rows", EXAMPLES / "dog face.png")
        page.until(lambda: not page.all("[role=alert]"))
    page.click(f"#{name}-example")
    page.until(lambda: not page.all("[role=alert]") and len(page.all(f"#{name}-start:enabled")) == 1)
    page.until(lambda: page.all(".tabitem img, [role=tabpanel] img"))
    page.click(f"#{name}-start")
    page.until(lambda: len(page.all(f"#{name}-result {part}")) == count)
    page.ready(f"{name}-start")
    page.until(lambda: page.is_in_sight(f"#{name}-result {part}"))
    page.shot(name)


@both
def test_what_is_found_lies_beside_the_search_button_also_while_the_panel_is_open(page, window):
    from selenium.webdriver.common.keys import Keys

    page.open(*window)
    page.tab("Search")
    page.until(lambda: "No index yet?" in page.find("#search-empty").text)
    page.shot("search-start")
    page.click("#search-more button")
    page.until(lambda: page.find(f"#search-folder {TEXT}").is_displayed())
    page.type(f"#search-folder {TEXT}", "photos", Keys.ENTER)
    page.until(lambda: "4 images in the index of" in page.find("#search-status").text)
    page.ready("search-build")
    page.type(f"#search-text {TEXT}", "a rocket", Keys.ENTER)
    page.until(lambda: len(page.all("#search-result .thumbnail-item img")) == 4)
    page.js("scrollTo(0, 0)")
    assert page.find(f"#search-folder {TEXT}").is_displayed()  # the panel is open
    page.until(lambda: page.is_in_sight("#search-result .thumbnail-item") and page.is_in_sight("#search-start"))
    page.ready("search-start")
    page.shot("search")
    page.type(f"#search-where {TEXT}", 'path ~ "*none*"', Keys.ENTER)
    page.until(lambda: "No image of this index matches the filter" in page.find("#search-empty").text)
    page.until(lambda: page.is_in_sight("#search-empty"))
    page.shot("search-none")


def test_the_server_hands_out_no_file_of_this_machine(address, root):
    for path in (root / "secret.txt", Path("/etc/passwd"), Path(__file__)):
        with pytest.raises(urllib.error.HTTPError, match="403|404"):
            urllib.request.urlopen(f"{address}/gradio_api/file={path}")


def test_a_taken_port_is_told(address, root):
    port = address.rpartition(":")[2]
    words = [sys.executable, "-m", "clip_guidance.cli.main", "ui", "--port", port]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and f"error: Cannot find empty port in range: {port}-{port}" in done.stderr
