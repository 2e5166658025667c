"""What others wrote, in names, captions and files: shown and never obeyed, and bad for nothing but itself."""

import errno
import json
import logging
import re
from pathlib import Path

import pytest
import torch
from helpers.empty_images import spoil
from helpers.factories import make_clip
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from clip_guidance.cli._common import as_json, narrate, print_lines, printable

CLEAR = "\x1b[2J\x9b2J\u202egnp"  # clears the screen, twice, and writes backwards
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def with_record(path: Path, settings: object, **more: object) -> Path:
    info = PngInfo()
    info.add_text("clip_guidance", json.dumps({"settings": settings, **more}))
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


@given(st.text() | st.text(st.sampled_from("a\x1b\x9b\u202e\ud800\x7f\n\t")))
def test_nothing_printed_is_obeyed(text):
    shown = printable(text)
    assert not OBEYED.search(shown) and "\n" not in shown
    if "\\" not in text:  # nothing is lost
        assert re.sub(r"\\(x..|u....|.)", lambda found: found[0].encode().decode("unicode_escape"), shown) == text
    assert not OBEYED.search(as_json({"a": [text]})) and json.loads(as_json({"a": [text]})) == {"a": [text]}


@pytest.mark.slow
def test_names_and_captions_reach_the_terminal_as_text(cli, clip, images, tmp_path, capsys):
    bad, good = images / f"{CLEAR}bad.png", images / f"{CLEAR}good.png"
    bad.write_bytes(b"")
    (images / "a.png").rename(good)
    for words in (
        ["score", bad, good, "--prompt", f"a {CLEAR}cat"],
        ["classify", bad, good, "--labels", f"cat,{CLEAR}dog"],
        ["similar", bad, good],
        ["generate", "--from", bad, "--output", tmp_path / "out"],
    ):
        for form in ([], ["--json"]):
            done = cli(*words, *(["--model", clip] if words[0] != "generate" else []), *form)
            assert done.code == 1, done.err
            assert not OBEYED.search(done.out + done.err)
            assert "\\x1b[2J" in done.err


def test_a_table_of_lines_and_a_log_are_text_too(cli, capsys):
    print_lines([[CLEAR, "two\nlines", "=1+1"]])
    assert capsys.readouterr().out == '\\x1b[2J\\x9b2J\\u202egnp\t"two\nlines"\t=1+1\n'
    cli("models")
    logging.getLogger("clip_guidance.images.load").warning("%s holds several frames", CLEAR)
    assert capsys.readouterr().err == "warning: \\x1b[2J\\x9b2J\\u202egnp holds several frames\n"
    narrate("failed", f"{CLEAR}\nerror: all is lost")  # a name that writes a line of its own
    assert capsys.readouterr().err == "failed: \\x1b[2J\\x9b2J\\u202egnp error: all is lost\n"


def test_json_holds_no_number_that_is_none():
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="Out of range float values"):
            as_json({"score": number})


CRAFTED = {
    "texts": {"prompt": ["a"]},
    "empty": {},
    "seed": {"prompt": "a", "seed": "7"},
    "nan": {"prompt": "a", "scale": float("nan")},
    "large": {"prompt": "a", "seed": 10**30},
    "steps": {"prompt": "a", "steps": 2.5},
    "truth": {"prompt": "a", "cutouts": True},
    "mode": {"prompt": "a", "mode": "sideways", "steps": 1},
    "model": {"prompt": "a", "model": "/nowhere/at/all"},
    "surrogate": {"prompt": "\ud800"},
    "window": {"prompt": "a", "start": 0.9, "stop": 0.1},
    "nested": {"prompt": {"a": {"b": 1}}},
}


def test_crafted_records_are_refused_by_field_and_a_good_image_is_drawn(cli, clip, judge, pipeline, tmp_path):
    settings = {"prompt": "a cat", "model": str(pipeline), "clip": str(clip), "judge": str(judge), "steps": 1}
    bad = [
        with_record(tmp_path / f"{name}.png", {**settings, **values} if "prompt" in values else values)
        for name, values in CRAFTED.items()
    ]
    good = with_record(tmp_path / "good.png", settings, guide=["x"], scores={"no": 1})
    words = [word for path in (*bad[:6], good, *bad[6:]) for word in ("--from", path)]
    done = cli("generate", *words, "--output", tmp_path / "out", "--json")
    assert done.code == 1 and [row["settings"]["prompt"] for row in done.json] == ["a cat"]
    said = dict(re.findall(r"failed: \S*/(\w+)\.png: (.*)", done.err))
    assert said.keys() == CRAFTED.keys() and all(len(reason) <= 300 for reason in said.values())
    assert said["seed"] == "seed must be a whole number, got '7'"
    assert said["nan"] == "scale must be from -10,000.0 to 10,000.0, got nan"
    assert said["empty"] == "the setting prompt is missing"
    assert "sideways" in said["mode"] and "/nowhere/at/all" in said["model"]


def test_a_full_disk_names_the_image_and_leaves_no_part(cli, clip, judge, pipeline, tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(self, data):
        if "dog" in self.name:
            write(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    options = ["--model", pipeline, "--clip", clip, "--judge", judge, "--steps", 1, "--output", tmp_path / "out"]
    done = cli("generate", "--prompt", "a cat", "--prompt", "a dog", "--prompt", "a bus", *options, "--json")
    assert done.code == 1 and [row["settings"]["prompt"] for row in done.json] == ["a cat"]
    assert f"failed: {tmp_path}/out/a-dog-0.png: cannot be written (No space left on device)" in done.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a-cat-0.png"]


def test_an_image_that_came_out_empty_fails_and_the_others_are_drawn(cli, clip, judge, pipeline, tmp_path, monkeypatch):
    spoil(monkeypatch, 1)
    options = ["--model", pipeline, "--clip", clip, "--judge", judge, "--steps", 1, "--output", tmp_path / "out"]
    done = cli("generate", "--prompt", "a cat", "--num-images", 3, *options, "--json")
    assert done.code == 1 and [row["settings"]["seed"] for row in done.json] == [0, 2]
    assert "failed: --prompt 'a cat': the image of 'a cat' (seed 1) is of one color" in done.err


@pytest.fixture
def nan_clip(tmp_path) -> Path:
    """A CLIP whose image tower is damaged, and whose text tower is sound."""
    clip = make_clip()
    with torch.no_grad():
        clip.visual_projection.weight.fill_(torch.nan)
    clip.save_pretrained(tmp_path / "nan")
    return tmp_path / "nan"


@pytest.mark.parametrize("words", [["classify", "--labels", "cat,dog"], ["similar"]])
def test_weights_that_are_nan_fail_by_name(cli, nan_clip, good, words):
    done = cli(*words, *good, "--model", nan_clip, "--json")
    assert done.code == 1 and done.json.get("results", []) == []
    reason = f"its embedding is not finite: the weights visual_projection.weight of {nan_clip} are not"
    assert done.json["failed"] == [{"path": str(path), "reason": reason} for path in good]


def test_texts_and_queries_that_are_nan_are_named(cli, nan_clip, good, tmp_path):
    query = cli("similar", *good, "--to", good[0], "--model", nan_clip)
    assert query.code == 2 and f"error: {good[0]}: " in query.err
    assert f"its embedding is not finite: the weights visual_projection.weight of {nan_clip}" in query.err
    clip = make_clip()
    with torch.no_grad():
        clip.text_projection.weight.fill_(torch.nan)
    clip.save_pretrained(tmp_path / "deaf")
    done = cli("classify", *good, "--labels", "cat,dog", "--model", tmp_path / "deaf")
    assert (done.code, done.out) == (2, "") and "its embedding is not finite: the weights text_projection" in done.err


def test_a_judge_of_nan_is_named(cli, nan_clip, clip, pipeline, tmp_path):
    options = ["--model", pipeline, "--clip", clip, "--judge", nan_clip, "--steps", 1, "--output", tmp_path / "out"]
    done = cli("generate", "--prompt", "a cat", *options, "--json")
    assert (done.code, done.out) == (2, "") and "the weights visual_projection.weight of" in done.err
