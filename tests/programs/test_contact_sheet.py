"""Checkpoints side by side: every image stands where its model and prompt say."""

import subprocess
import sys

import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def importable(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "training"))


def test_a_row_a_model_and_a_column_a_prompt():
    from contact_sheet import MARGIN, sheet_of

    colours = {"a": ["red", "green", "blue"], "b": ["cyan", "magenta", "yellow"]}
    rows = {name: [Image.new("RGB", (64, 64), colour) for colour in each] for name, each in colours.items()}
    sheet = sheet_of(rows, ["a noto picture of a cat", "a dog", "a" * 200], columns=2)
    band = 2 * (64 + MARGIN) + 2 * MARGIN
    assert sheet.size == (2 * 96, 2 * band)
    for number, each in enumerate(colours.values()):
        for i, colour in enumerate(each):
            x, y = i % 2 * 96 + 32, i // 2 * band + number * (64 + MARGIN) + MARGIN + 32
            assert sheet.getpixel((x, y)) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    last = sheet.crop((96, band, 192, 2 * band))  # of the band with one prompt, however long it is
    assert last.getextrema() == ((255, 255),) * 3


@pytest.mark.slow
def test_the_program_draws_the_same_prompts_from_the_same_noise(root, tmp_path):
    command = [sys.executable, str(root / "training" / "contact_sheet.py"), "--models", "emoji", "--steps", "2"]
    for output, options in (("both.png", ["a cat", "a dog"]), ("cats.png", ["a cat", "a cat"])):
        arguments = ["--output", str(tmp_path / output), "--prompts", *options]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    both, cats = (Image.open(tmp_path / name).crop((0, 16, 192, 80)) for name in ("both.png", "cats.png"))
    assert both.crop((0, 0, 64, 64)).tobytes() == cats.crop((0, 0, 64, 64)).tobytes()
    assert both.crop((96, 0, 160, 64)).tobytes() != cats.crop((96, 0, 160, 64)).tobytes()


def test_what_is_missing_is_said(tmp_path):
    from contact_sheet import Settings, chosen_prompts, main

    with pytest.raises(SystemExit, match="expected --prompts, or --data .* got neither"):
        chosen_prompts(Settings(models=["emoji"], output=str(tmp_path / "sheet.png")))
    with pytest.raises(SystemExit, match="nowhere: neither a folder"):
        main(Settings(models=["nowhere"], prompts=["a cat"], output=str(tmp_path / "sheet.png")))
