"""Driving the page in a real browser: fields by their id, waiting, and images of the page for the docs."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
)
PATIENCE = 300  # seconds: only a page that hangs waits so long
TEXT = ":is(textarea, input)"
WIDE, NARROW = (1280, 900), (390, 844)
both = pytest.mark.parametrize("window", [WIDE, NARROW], ids=["wide", "narrow"])
COLORS = 256  # of an image in the docs


class Page:
    """The page in a window of a given width.

    Args:
        driver: Selenium's.
        address: Where the page is served.
        images: Folder that ``shot`` writes to; None where no image is wanted.
    """

    def __init__(self, driver: Any, address: str, images: Path | None) -> None:
        self.driver, self.address, self.images = driver, address, images

    def open(self, width: int, height: int) -> None:
        """Load the page anew in a window of this size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(self.address)
        self.until(lambda: self.find(f"#generate-prompt {TEXT}").is_displayed())
        self.until(lambda: self.find("#generate-guided").is_displayed())  # which gradio loads later
        assert self.js("return [innerWidth, innerHeight]") == [width, height]

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def js(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until a condition holds; return what it found."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, PATIENCE, 0.2, ignored_exceptions=[Exception]).until(lambda _: condition())

    def click(self, selector: str) -> None:
        """Click, wherever the element is on the page."""
        self.js("arguments[0].scrollIntoView({block: 'center'})", self.find(selector))
        self.until(lambda: self.find(selector).click() or True)

    def type(self, selector: str, text: str, *keys: str) -> None:
        """Replace the text of a field, and press further keys in it."""
        from selenium.webdriver.common.keys import Keys

        field = self.find(selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", field)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text or Keys.DELETE, *keys)

    def value(self, selector: str) -> str:
        return self.find(selector).get_attribute("value")

    def tab(self, name: str) -> None:
        """Open a tab by its title."""
        self.js("scrollTo(0, 0)")
        # where the window is narrow, gradio shows the last titles in a menu
        script = (
            "return [...document.querySelectorAll('button[role=tab]')]"
            ".find(each => each.innerText.trim() == arguments[0] && each.offsetParent)"
        )
        self.until(lambda: self.js(script, name).click() or True)

    def ready(self, run: str) -> None:
        """Wait until the run of a button has ended."""
        self.until(lambda: self.find(f"#{run}").is_enabled() and "…" not in self.find(f"#{run}").text)

    def rectangle(self, selector: str) -> dict[str, float]:
        return self.js("return arguments[0].getBoundingClientRect().toJSON()", self.find(selector))

    def is_in_sight(self, selector: str) -> bool:
        """Whether the whole element lies in the window."""
        box = self.rectangle(selector)
        width, height = self.js("return [innerWidth, innerHeight]")
        inside = box["left"] >= 0 and box["right"] <= width and box["top"] >= 0 and box["bottom"] <= height
        return inside and box["width"] > 0

    def upload(self, gallery: str, path: Path) -> None:
        """Add an image to a gallery, and wait until it is there."""
        self.find(f"{gallery} input[type=file]").send_keys(str(path))
        self.until(lambda: self.find(f"{gallery} img").is_displayed())

    def shot(self, name: str) -> None:
        """Write what the window shows, in few colors, to the file of this name and of the window's width."""
        if self.images is None:
            return
        self.images.mkdir(parents=True, exist_ok=True)
        with Image.open(io.BytesIO(self.driver.get_screenshot_as_png())) as image:
            few = image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
        few.save(self.images / f"{name}-{self.js('return innerWidth')}.png", optimize=True)
