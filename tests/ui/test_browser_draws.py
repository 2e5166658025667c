"""The page in a real browser, without a network: typed, drawn, stopped, brought back and downloaded.

With ``--full --write-docs`` it writes the images of docs/guides/browser.md, as ``test_browser.py`` does.
"""

import urllib.request
from pathlib import Path

import pytest
from helpers.browser import TEXT, WIDE, both

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'clip-guidance[ui]'")
pytest.importorskip("selenium", reason="driving a browser needs selenium, of the extra test")

from clip_guidance.generation.settings import read_settings
from clip_guidance.ui.state import EXAMPLES

pytestmark = pytest.mark.slow


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


def test_a_page_that_was_just_opened_draws(page):
    page.open(*WIDE)
    page.click("#generate-draw")
    page.until(lambda: "which guided it" in page.find("#generate-guided-caption").text)
    page.ready("generate-draw")
    assert page.find("#generate-notice").text == "" and len(page.all("#generate-history .thumbnail-item")) == 1


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


def draw_for_long(page):
    """Begin a run that no machine ends while it is tested."""
    from selenium.webdriver.common.keys import Keys

    page.click("#generate-more button")
    page.until(lambda: page.find("#generate-steps input").is_displayed())
    assert not page.find("#generate-stop").is_enabled()
    page.type("#generate-steps input", "1000", Keys.TAB)
    page.type("#generate-best-of input", "64", Keys.ENTER)
    page.until(lambda: page.find("#generate-without-caption").text.startswith("step"))


def test_a_run_can_be_stopped(page):
    page.open(*WIDE)
    draw_for_long(page)
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


def test_a_page_waits_for_the_run_of_another_and_begins_when_that_one_is_closed(page, driver):
    page.open(*WIDE)
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    page.open(*WIDE)
    draw_for_long(page)
    second = driver.current_window_handle
    driver.switch_to.window(first)
    page.click("#generate-draw")
    page.until(lambda: page.find("#generate-draw").text == "Waiting…")
    driver.switch_to.window(second)
    driver.close()
    driver.switch_to.window(first)
    page.until(lambda: "which guided it" in page.find("#generate-guided-caption").text)
    page.ready("generate-draw")
    assert page.find("#generate-draw").text == "Draw"
