"""``clip-guidance ui``: what keeps it from starting is told."""

import builtins

import pytest


def test_without_gradio_the_extra_is_named(cli, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    done = cli("ui")
    assert (done.code, done.out) == (2, "")
    assert "the page needs gradio (No module named 'gradio'): pip install 'clip-guidance[ui]'" in done.err


@pytest.mark.slow  # the first one imports gradio
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--root", "gone"], "gone: expected the folder that the page may read (--root), there is none"),
        (["--model", "emoji-judge"], "emoji-judge: a CLIP without a pipeline"),
        (["--model", "nowhere"], "nowhere: neither a folder, nor a packaged pipeline"),
        (["--port", "0"], "'--port': "),
    ],
)
def test_what_cannot_be_served_exits_with_2(cli, words, message):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'clip-guidance[ui]'")
    done = cli("ui", *words)
    assert (done.code, done.out) == (2, "") and message in " ".join(done.err.replace("│", " ").split())


def test_listening_to_others_is_warned_of(cli, tmp_path):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'clip-guidance[ui]'")
    done = cli("ui", "--host", "0.0.0.0", "--model", "nowhere", "--root", tmp_path)
    assert f"whoever reaches 0.0.0.0 can draw here, and search images in {tmp_path}" in done.err
