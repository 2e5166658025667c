"""The page itself: its tabs, its errors, and whom it answers."""

import asyncio
import dataclasses

import pytest

gr = pytest.importorskip("gradio", reason="the page needs gradio: pip install 'clip-guidance[ui]'")

from PIL import Image  # noqa: E402
from starlette.responses import PlainTextResponse  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from clip_guidance.clip.domain import foreign_prompts  # noqa: E402
from clip_guidance.ui import app, generate  # noqa: E402
from clip_guidance.ui.events import RunButton, StopButton, Update, error_line, note_line, on_run  # noqa: E402
from clip_guidance.ui.generate import _parts, _strengths, examples_of  # noqa: E402
from clip_guidance.ui.hosts import HostCheck  # noqa: E402
from clip_guidance.ui.pairs import Pair, Side, settings_of  # noqa: E402
from clip_guidance.ui.state import AppState  # noqa: E402


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


def test_what_is_told_is_text_and_told_once():
    assert "&lt;b&gt;gone" in error_line("<b>gone") and "<b>" not in error_line("<b>gone")
    assert note_line(["<i>", "b", "<i>"]).count("cg-notice") == 2 and "<i>" not in note_line(["<i>"])


def steps_of(work):
    """Run what a button starts; yield the updates of the button, the notice and the one output."""

    async def made():
        with gr.Blocks() as page:
            field, notice, output = gr.Textbox(), gr.HTML(), gr.HTML()
            on_run(RunButton.make("Go", "Going", "go"), notice, work, [field], [output])
        return next(event.fn for event in page.fns.values() if event.fn)

    return asyncio.run(made())(gr.Request(session_hash="a page"), "typed")


@pytest.mark.parametrize(
    ("error", "told"),
    [(ValueError("Seed is empty"), "Seed is empty"), (RuntimeError("no memory"), "terminal tells in full: no memory")],
)
def test_a_run_that_fails_keeps_what_it_has_shown_and_frees_its_button(error, told, caplog):
    def work(value):
        yield Update([f"{value} first"], ["a note"])
        raise error

    begun, first, last = steps_of(work)
    assert begun[0].value == "Going" and begun[0].interactive is False and begun[1] == ""
    assert "a note" in first[1] and first[2] == "typed first"
    assert last[0].value == "Go" and last[0].interactive is True and told in last[1] and last[2] == gr.skip()
    assert ("no memory" in caplog.text) == isinstance(error, RuntimeError)


def test_stop_ends_the_run_of_its_own_page_and_none_that_begins_later():
    async def made():
        with gr.Blocks():
            return StopButton.make("stop")

    stop = asyncio.run(made())
    own, other = (gr.Request(session_hash=name) for name in ("own", "other"))
    stop.ask(own)  # before there is a run
    with stop.listening(own) as (stopping,), stop.listening(other) as (others,):
        assert not stopping.is_set()
        stop.ask(own)
        assert stopping.is_set() and not others.is_set()
    stop.ask(own)  # when it has ended
    former = stop.listening(own)
    former.__enter__()
    with stop.listening(own) as (stopping,):  # a run that nobody watches is closed after the next has begun
        former.__exit__(None, None, None)
        stop.ask(own)
        assert stopping.is_set()
    assert not stop.running
    with stop.listening(own) as (stopping,):
        assert not stopping.is_set()


def test_a_run_that_can_be_stopped_hears_its_button():
    def work(value, stopping):
        while not stopping.is_set():
            yield Update([value])
        yield Update([f"{value}, stopped"])

    async def made():
        with gr.Blocks() as page:
            run = RunButton.make("Go", "Going", "go", stop_id="stop")
            field, notice, output = gr.Textbox(), gr.HTML(), gr.HTML()
            on_run(run, notice, work, [field], [output])
        return run, next(event.fn for event in page.fns.values() if event.fn and len(event.outputs) == 4)

    run, steps = asyncio.run(made())
    page = gr.Request(session_hash="a page")
    assert run.stop and run.stop.button.interactive is False
    shown = steps(page, "typed")
    begun, first = next(shown), next(shown)
    assert (begun[1].value, begun[1].interactive, first[3]) == ("Stop", True, "typed")
    run.stop.ask(page)
    last, ended = shown
    assert last[3] == "typed, stopped" and (ended[0].value, ended[0].interactive) == ("Go", True)
    assert (ended[1].value, ended[1].interactive) == ("Stop", False)


def test_an_image_that_is_shown_already_is_not_sent_again():
    preview, other = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "red")
    shown = Pair(Side(preview, "step 3 of 9"))
    sent = _parts(shown.stopped(), shown)
    assert (sent[0], sent[1], sent[3]) == (gr.skip(), "stopped at step 3 of 9", gr.skip())
    assert _parts(Pair(Side(preview.copy())), shown)[0] == gr.skip()  # of a step that changed nothing
    assert _parts(Pair(Side(other)), shown)[0] is other and _parts(Pair(), shown)[0] is None
    assert _parts(shown)[0] is preview and _parts(Pair())[0] is None  # at first, and from the history


def test_the_examples_have_only_words_that_the_model_knows():
    assert len(examples_of("emoji")) >= 3 and foreign_prompts("emoji", examples_of("emoji")) is None
    assert examples_of("another/model") and not set(examples_of("another/model")) & set(examples_of("emoji"))


def test_the_strength_of_a_pair_in_no_table_is_shown_as_calibrated(state, tmp_path):
    other = AppState("emoji", "emoji-judge", "cpu", tmp_path, tmp_path)  # a CLIP that was never tuned for it
    calibrate, strength = _strengths(other, "emoji")
    assert (calibrate.value, calibrate.visible, strength.visible) == (True, True, False)
    calibrate, strength = _strengths(state, "emoji")
    assert (calibrate.value, calibrate.visible, strength.value, strength.visible) == (False, False, 10, True)


def test_a_tuned_strength_beyond_the_slider_is_kept(state, monkeypatch):
    tuned = dataclasses.replace(settings_of(state, "emoji"), scale=75.0)
    monkeypatch.setattr(generate, "settings_of", lambda *_: tuned)
    _, strength = _strengths(state, "emoji")
    assert (strength.value, strength.maximum) == (75, 75)


def test_the_page_has_its_tabs_and_sends_nothing(state):

    async def made():  # gradio makes event loops of its own, and leaves them open, where none is running
        return app.build_page(state)

    page = asyncio.run(made())
    assert page.analytics_enabled is False
    tabs = [block.label for block in page.blocks.values() if isinstance(block, gr.Tab)]
    assert tabs == ["Generate", "Classify", "Compare", "Search"]
    assert {event.api_visibility for event in page.fns.values()} == {"private"}


def test_a_field_that_nobody_has_opened_yet_has_a_value(state):
    async def made():
        return app.build_page(state)

    fields = [block for block in asyncio.run(made()).blocks.values() if isinstance(block, gr.Textbox | gr.Number)]
    assert len(fields) >= 14
    assert {block.label: block.value for block in fields if block.value is None} == {}
