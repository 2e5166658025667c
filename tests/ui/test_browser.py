"""The page in a real browser, without a network: errors, fields, judged and searched, in a wide and in a narrow window.

With ``--full --write-docs`` it writes the images of docs/guides/browser.md, as ``test_browser_draws.py`` does.
"""

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from helpers.browser import TEXT, both

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'clip-guidance[ui]'")
pytest.importorskip("selenium", reason="driving a browser needs selenium, of the extra test")

from clip_guidance.ui.state import EXAMPLES

pytestmark = pytest.mark.slow
NUMBERS = ["seed", "images", "strength", "guidance-scale", "steps", "best-of", "particles", "damping"]
FIELDS = {  # by tab, the buttons that Enter presses in the fields of one line
    "Generate": dict.fromkeys(["prompt", "negative", *NUMBERS], "generate-draw"),
    "Search": dict.fromkeys(["text", "where", "count", "index"], "search-start") | {"folder": "search-build"},
}
MISSING = {"generate-draw": "Prompt is empty", "search-start": "Index: there is no", "search-build": "Images is empty"}


def alert(page, notice: str) -> str:
    """Return the one error that is told."""
    (shown,) = page.all("[role=alert]")
    assert shown.find_element("xpath", f"ancestor::*[@id='{notice}']")
    return shown.text


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
