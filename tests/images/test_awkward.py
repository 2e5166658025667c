"""Files as the world has them: animations, odd names, links, pipes, folders and files that may not be read."""

import io
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_guidance.images import load as images
from clip_guidance.images.load import ImageError, find_images, load_image, load_images


@pytest.fixture
def red(tmp_path) -> Path:
    path = tmp_path / "red.png"
    Image.new("RGB", (4, 4), "red").save(path)
    return path


def several(format: str, colours=("red", "blue")) -> bytes:
    first, *rest = [Image.new("RGB", (16, 16), colour) for colour in colours]
    buffer = io.BytesIO()
    first.save(buffer, format, save_all=True, append_images=rest, **({"lossless": True} if format == "WEBP" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken_and_that_is_said_once(format, caplog, monkeypatch):
    monkeypatch.setattr(images, "_warned", set())
    data = several(format)
    with caplog.at_level(logging.WARNING):
        loaded = [load_image(data, name) for name in ("still one", "another", "a third")]
    assert [image.getpixel((0, 0)) for image in loaded] == [(255, 0, 0)] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "still one holds several frames; of this and other such images the first is taken"
    ]


def test_what_holds_one_image_is_not_called_an_animation(red, caplog, monkeypatch):
    monkeypatch.setattr(images, "_warned", set())
    for source in (red, several("GIF", ("red",)), several("MPO")):  # a camera's second image is no frame
        load_image(source)
    assert not caplog.records


def test_a_broken_second_frame_does_not_lose_the_first(caplog, monkeypatch):
    monkeypatch.setattr(images, "_warned", set())
    data = several("GIF")
    assert load_image(data[:-30]).getpixel((0, 0)) == (255, 0, 0)


def test_a_callers_image_stays_at_the_frame_that_the_caller_chose():
    image = Image.open(io.BytesIO(several("GIF")))
    image.seek(1)
    assert load_image(image).getpixel((0, 0)) == (0, 0, 255) and image.tell() == 1


@pytest.mark.parametrize("inverted", [True, False])
def test_a_palette_with_transparency_of_every_entry(inverted):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=b"\x80\xff" if inverted else b"\xff\x80")
    half, whole = ((255, 127, 127), (0, 0, 255)) if inverted else ((127, 127, 255), (255, 0, 0))
    loaded = load_image(buffer.getvalue())
    assert loaded.getpixel((0 if inverted else 1, 0)) == half and loaded.getpixel((1 if inverted else 0, 0)) == whole


def test_grey_of_sixteen_bits_turns_upright_too():
    ramp = np.array([[0, 65535], [32768, 257]], dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG", exif=exif)
    assert np.array_equal(np.asarray(load_image(buffer.getvalue()))[..., 0], [[1, 128], [255, 0]])


@pytest.mark.parametrize(
    "name", ["a b.png", " .png", "Größe 画像 🦋.png", "x'\"$;&.png", "-r.png", "100%.png", "[1].png"]
)
def test_any_name_will_do(name, red, tmp_path):
    path = tmp_path / "folder é" / name
    path.parent.mkdir()
    red.rename(path)
    assert find_images([path.parent]) == find_images([path]) == [path]
    assert load_image(path).getpixel((0, 0)) == load_image(str(path)).getpixel((0, 0)) == (255, 0, 0)


# What is found in a folder fails by name


def test_links_that_lead_nowhere_are_found_and_refused(red, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").symlink_to(folder / "b.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    (folder / "gone.png").symlink_to(tmp_path / "not there.png")
    (folder / "good.png").symlink_to(red)
    (folder / "loop").symlink_to(folder)  # a folder within itself is not walked
    assert [path.name for path in find_images([folder])] == ["a.png", "b.png", "gone.png", "good.png"]
    (batch,) = load_images(find_images([folder]), on_error="skip")
    assert batch.names == [str(folder / "good.png")]
    reasons = {Path(entry.path).name: entry.reason for entry in batch.skipped}
    assert reasons["gone.png"] == "no such file"
    assert reasons["a.png"] == reasons["b.png"] == f"cannot be read ({os.strerror(40)})"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert find_images([tmp_path]) == find_images([f"{tmp_path}/*.png"]) == [tmp_path / "pipe.png"]
    with pytest.raises(ImageError, match=r"pipe\.png: cannot be read \(not a regular file\)"):
        load_image(tmp_path / "pipe.png")


def test_a_folder_named_like_an_image_is_a_folder(red, tmp_path):
    folder = tmp_path / "album.png"
    folder.mkdir()
    assert find_images([folder]) == [folder]
    with pytest.raises(ImageError, match=r"album\.png: is a folder that holds no image"):
        load_image(folder)
    red.rename(folder / "red.png")
    assert find_images([tmp_path]) == find_images([folder]) == [folder / "red.png"]


def test_a_file_that_may_not_be_read_is_named(red, monkeypatch):
    def denied(path):  # root may read everything, so it is simulated
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(ImageError, match=r"red\.png: cannot be read \(Permission denied\)$"):
        load_image(red)


def test_a_folder_that_may_not_be_looked_into_is_named(red, tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir()
    scandir = os.scandir

    def denied(path):
        if Path(path) == closed:
            raise PermissionError(13, os.strerror(13), os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    assert find_images([tmp_path]) == [closed, red]
    assert find_images([closed]) == [closed]
    with pytest.raises(ImageError, match=r"closed: cannot be read \(Permission denied\)$"):
        load_image(closed)


def test_a_path_below_a_folder_that_may_not_be_entered_is_kept(monkeypatch, tmp_path):
    stat = os.stat

    def denied(path, *args, **kwargs):
        if os.fspath(path) == str(tmp_path / "closed" / "a.png"):
            raise PermissionError(13, os.strerror(13), os.fspath(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", denied)
    path = tmp_path / "closed" / "a.png"
    assert find_images([path]) == [path]
    with pytest.raises(ImageError, match=r"a\.png: cannot be read \(Permission denied\)$"):
        load_image(path)
