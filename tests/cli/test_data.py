"""`clip-guidance data check`: the report on stdout, bad rows by name on stderr, exit codes."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from clip_guidance.data import pairs as reading_pairs


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "my photos"
    for i in range(9):
        path = folder / ("dog" if i == 8 else "cat") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (i, 0, 0)).save(path)
    (folder / "cat" / "broken.png").write_bytes(b"")
    return folder


def test_check_counts_lists_and_ends_with_one(cli, photos, tmp_path):
    quarantine = tmp_path / "bad.jsonl"
    done = cli("data", "check", photos, "--json", "--quarantine", quarantine)
    assert done.code == 1
    assert (done.json["rows"], done.json["good"], done.json["bad"]) == (10, 9, {"empty": 1})
    assert done.json["duplicate_captions"] == 7 and done.json["complete"] and not done.json["accepted"]
    assert "failed: cat/broken.png: empty: is empty (0 bytes)" in done.err
    assert "1 of 10 rows are bad (10.0%), more than max_bad_share=5.0%" in done.err
    (line,) = quarantine.read_text("utf-8").splitlines()
    assert json.loads(line)["key"] == "cat/broken.png"


def test_check_accepts_a_share(cli, photos):
    done = cli("data", "check", photos, "--max-bad-share", 0.1)
    assert done.code == 0
    header, rows, good, bad, *_ = done.table
    assert header == ["what", "rows", "share", "meaning"]
    assert rows[:2] == ["rows", "10"] and good[:3] == ["good", "9", "90.0%"]
    assert bad == ["bad: empty", "1", "10.0%", "cat/broken.png: is empty (0 bytes)"]


def test_check_reads_no_more_than_the_limit(cli, photos):
    done = cli("data", "check", photos, "--limit", 3, "--json")
    assert done.code == 0 and done.json["rows"] == 3 and not done.json["complete"]


def test_check_takes_columns_by_name(cli, photos):
    (photos / "list.csv").write_text("foto,alt\ncat/1.png,one\n")
    assert cli("data", "check", photos / "list.csv", "--image-column", "foto", "--caption-column", "alt").code == 0
    done = cli("data", "check", photos / "list.csv")
    assert done.code == 2 and "no column of images found; it has 'foto', 'alt'" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.csv"], "none.csv: there is no such file or folder; supported are"),
        (["x.csv", "--quarantine", "a.png"], "--quarantine must end in .jsonl, got a.png"),
        (["x.csv", "--max-bad-share", "2"], "should be less than or equal to 1"),
    ],
)
def test_what_makes_no_sense_is_usage(cli, words, message):
    done = cli("data", "check", *words)
    assert done.code == 2 and message in done.err


def test_a_quarantine_is_not_overwritten(cli, photos, tmp_path):
    (tmp_path / "bad.jsonl").write_text("mine")
    done = cli("data", "check", photos, "--quarantine", tmp_path / "bad.jsonl")
    assert done.code == 2 and "nothing is overwritten" in done.err and (tmp_path / "bad.jsonl").read_text() == "mine"


def test_ctrl_c_keeps_what_is_done(cli, photos, monkeypatch):
    decode, calls = reading_pairs.decode, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return decode(*args, **options)

    monkeypatch.setattr(reading_pairs, "decode", interrupted)
    done = cli("data", "check", photos, "--workers", 0, "--json")
    assert done.code == 130 and done.json["rows"] == 3 and not done.json["complete"]


@pytest.mark.slow
def test_its_help_is_light():
    code = (
        "import sys; sys.argv = ['clip-guidance', 'data', 'check', '--help']\nfrom clip_guidance.cli.main import run\n"
    )
    code += "try: run()\nexcept SystemExit: print('loaded:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown, loaded = done.stdout.rsplit("loaded:", 1)
    assert "--max-bad-share" in shown and not {"torch", "diffusers", "transformers", "datasets"} & set(loaded.split())


def test_texts_that_lie_unread_are_named(cli, photos, tmp_path):
    (photos / "dog").rename(tmp_path / "dog")
    (photos / "words").mkdir()
    (photos / "words" / "1.txt").write_text("a cat")
    done = cli("data", "check", photos)
    assert done.code == 2 and "would be captioned 'cat' by their folder" in done.err
    assert "text files lie unread: words/1.txt" in done.err
    (photos / "words" / "1.txt").unlink()
    done = cli("data", "check", photos, "--max-bad-share", 0.2)
    assert done.code == 1 and "all 8 captions are the same: a CLIP has nothing to learn" in done.err


def test_columns_pick_files_of_a_folder(cli, photos):
    (photos / "cat" / "1.words.txt").write_text("a cat")
    done = cli("data", "check", photos, "--image-column", "png", "--caption-column", "words", "--json")
    assert (done.json["good"], done.json["captions"]) == (2, 2)  # of the cats one; the dog is a class
