"""A folder of everything: each bad image is named once with its reason, all the good ones are done."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

GOOD = {
    "rotated.jpg": lambda path: noise().save(path, exif=_orientation(6)),
    "alpha.png": lambda path: noise().convert("RGBA").save(path),
    "palette.png": lambda path: noise().convert("P").save(path, transparency=0),
    "grey.png": lambda path: noise().convert("L").save(path),
    "grey16.png": lambda path: Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999).save(path),
    "ink.jpg": lambda path: noise().convert("CMYK").save(path),
    "moving.gif": lambda path: noise().save(path, save_all=True, append_images=[noise(1), noise(2)]),
    "Größe 画像 🦋.png": lambda path: noise().save(path),
    "album.png/inside.png": lambda path: noise().save(path),
}
BAD = {
    "phone.heic": (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), "HEIC is not supported"),
    "logo.svg": (lambda path: path.write_bytes(b"<svg/>"), "SVG is not supported"),
    "empty.png": (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
    "cut.png": (lambda path: (noise().save(path), os.truncate(path, 700)), "cannot be read"),
    "bomb.ppm": (lambda path: path.write_bytes(b"P6 60000 60000 255\n"), "above the cap of 179 megapixels"),
    "text.jpg": (lambda path: path.write_text("no image"), "is not an image"),
    "loop.png": (lambda path: path.symlink_to(path), f"cannot be read ({os.strerror(40)})"),
    "gone.png": (lambda path: path.symlink_to("nowhere.png"), "no such file"),
    "pipe.png": (lambda path: os.mkfifo(path), "cannot be read (not a regular file)"),
}


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8))


def _orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.fixture
def folder(tmp_path) -> Path:
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    folder = tmp_path / "all kinds"
    for name, make in {**GOOD, **{name: make for name, (make, _) in BAD.items()}}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make(folder / name)
    (folder / "within itself").symlink_to(folder)
    return folder


@pytest.mark.parametrize(
    ("words", "done_of"),
    [
        (["classify", "--labels", "cat,dog"], lambda found: [row["image"] for row in found["results"]]),
        (["index", "--index", "INDEX"], lambda found: found["added"]),
        (["similar"], lambda found: found["images"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_folder_of_everything(cli, clip, folder, tmp_path, words, done_of):
    words = [tmp_path / "photos.index" if word == "INDEX" else word for word in words]
    done = cli(*words, folder, "--model", clip, "--json")
    assert done.code == 1
    assert sorted(done_of(done.json)) == sorted(str(folder / name) for name in GOOD)
    failed = {row["path"]: row["reason"] for row in done.json["failed"]}
    assert set(failed) == {str(folder / name) for name in BAD}
    for name, (_, reason) in BAD.items():
        assert reason in failed[str(folder / name)]
    lines = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert Counter(name for line in lines for name in BAD if f"/{name}: " in line) == Counter(list(BAD))


def test_a_name_that_is_no_text_is_printed_all_the_same(cli, clip, tmp_path):
    folder = tmp_path / "names"
    folder.mkdir()
    try:
        noise().save(os.fsencode(folder) + b"/\xff.png", "PNG")
    except OSError:
        pytest.skip("needs a file system that takes any bytes as a name")
    words = ["classify", folder, "--labels", "cat,dog", "--model", clip]
    done = cli(*words)
    assert done.code == 0 and done.table[1][0] == f"{folder}/\\udcff.png"
    done = cli(*words, "--json")
    assert done.code == 0 and Path(done.json["results"][0]["image"]).is_file()
