"""The page itself: its tabs, its errors, and whom it answers."""

import asyncio

import pytest

gr = pytest.importorskip("gradio", reason="the page needs gradio: pip install 'clip-guidance[ui]'")

from starlette.responses import PlainTextResponse  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from clip_guidance.ui import app  # noqa: E402
from clip_guidance.ui.generate import generate_pair, stopped  # noqa: E402
from clip_guidance.ui.hosts import HostCheck  # noqa: E402
from clip_guidance.ui.search import build  # noqa: E402
from clip_guidance.ui.state import ERROR_SECONDS  # noqa: E402

PROMPT, STEPS = "a noto picture of a rocket", 3


def refused(message: str):
    return pytest.raises(gr.Error, match=message)


def test_an_error_goes_away_by_itself(state):
    with refused("expected a prompt") as raised:
        list(generate_pair(state, " ", 0, 1, 1.0, "emoji"))
    assert raised.value.duration == ERROR_SECONDS < 60


def test_an_image_that_was_stopped_says_so():
    assert stopped("step 11 of 20", None) == ["stopped at step 11 of 20", ""]
    others = ["<b>53.1</b> by emoji", "stopped at step 3 of 9"]
    assert stopped(*others) == others


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("localhost:7860", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:7860", 200),
        ("[::1]:7860", 200),
        ("192.168.1.5", 200),
        ("box.example.com:80", 200),  # --allow-host
        ("evil.example.com", 403),
        ("localhost.evil.com", 403),
        ("127.0.0.1.evil.com:7860", 403),
        ("evil.com#localhost", 403),
        ("localhost@evil.com", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_name_of_another_site_is_refused(host, code):
    app = HostCheck(PlainTextResponse("the page"), ["Box.example.com"])
    answer = TestClient(app).get("/", headers={"host": host})
    assert (answer.status_code, answer.text == "the page") == (code, code == 200)


def test_errors_are_text(state):
    with refused("&lt;b&gt;gone") as raised:
        list(build(state, "<b>gone", "photos.index", "emoji"))
    assert "<b>" not in raised.value.message


def test_the_page_has_its_tabs_and_sends_nothing(state):

    async def made():  # gradio makes event loops of its own, and leaves them open, where none is running
        return app.build_page(state)

    page = asyncio.run(made())
    assert page.analytics_enabled is False
    tabs = [block.label for block in page.blocks.values() if isinstance(block, gr.Tab)]
    assert tabs == ["Generate", "Classify", "Compare", "Search"]
    assert {event.api_visibility for event in page.fns.values()} == {"private"}
