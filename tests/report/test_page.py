"""The file of a report: whole or not there, never over anything else, without what images tell about people."""

import os
import sys

import pytest
from helpers import html_pages
from markupsafe import Markup
from PIL import Image

from clip_guidance import _files
from clip_guidance.report import Page
from clip_guidance.report.html.thumbnails import SIZE, thumbnail

PAGE = Page("A <title> & more", (Markup("<p>one</p>"), Markup("<p>two</p>")))


def test_a_page_is_saved_and_replaced(tmp_path):
    path = PAGE.save(tmp_path / "日本 <b>.html")
    page = html_pages.read(path.read_text("utf-8"))
    html_pages.assert_harmless(page)
    assert page.all("title")[0].text == page.all("h1")[0].text == "A <title> & more"
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [
        meta.attributes for meta in page.all("meta")
    ]
    Page("another", ()).save(path)
    assert "another" in path.read_text("utf-8") and os.listdir(tmp_path) == [path.name]


def test_another_file_is_never_replaced(tmp_path):
    for name, content in (("mine.html", "<!doctype html><p>my page"), ("empty.html", "")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=f"{name} exists and is no report of clip_guidance; it is not overwritten"):
            PAGE.save(tmp_path / name)
        assert (tmp_path / name).read_text() == content
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ValueError, match="folder.html exists and is no report"):
        PAGE.save(tmp_path / "folder.html")
    with pytest.raises(ValueError, match="a report must end in .html or .htm, got report.pdf"):
        PAGE.save(tmp_path / "report.pdf")
    with pytest.raises(ValueError, match="x.html: .*mine.html is no folder that can be written to"):
        PAGE.save(tmp_path / "mine.html" / "deep" / "x.html")


def test_folders_are_made(tmp_path):
    assert PAGE.save(tmp_path / "a" / "b" / "x.html").is_file()


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = PAGE.save(tmp_path / "a.html")
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        Page("another", ()).save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.html"]


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text exist on Linux alone")
def test_names_that_are_no_text_are_written(tmp_path):
    page = Page(os.fsdecode(b"caf\xe9"), ())
    assert "caf\\udce9" in page.save(tmp_path / "a.html").read_text("utf-8")


def test_a_notebook_shows_parts_without_the_page():
    assert "<p>one</p>\n<p>two</p>" in PAGE._repr_html_() and "<html" not in PAGE._repr_html_()
    assert "<p>one</p>\n<p>two</p>" in PAGE.to_html()


def test_thumbnails_are_small_upright_and_tell_nothing_else(tmp_path):
    image = Image.linear_gradient("L").convert("RGB").resize((900, 300))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "at home"  # to be turned; a description
    exif.get_ifd(0x8825)[1] = "N"
    image.save(tmp_path / "a.jpg", exif=exif, comment=b"secret", icc_profile=b"x" * 5000)
    shown = thumbnail(tmp_path / "a.jpg")
    assert shown.name == str(tmp_path / "a.jpg") and len(shown.uri) < 20_000
    embedded = html_pages.image(html_pages.Element("img", {"src": shown.uri}))
    assert embedded.size == (SIZE // 3, SIZE)
    assert not embedded.getexif() and not {"comment", "icc_profile", "exif"} & set(embedded.info)


def test_a_thumbnail_never_fails(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    assert thumbnail(tmp_path / "a.png").reason == "is empty (0 bytes)"
    assert thumbnail(Image.new("RGB", (1000, 1))).uri is not None


def test_two_processes_may_write_one_report(tmp_path, monkeypatch):
    """Each has a temporary file of its own, so the second to end replaces a whole page by a whole page."""
    path, first, second = tmp_path / "page.html", Page("first", ()), Page("second", ())
    fsync_file = _files.fsync_file

    def meanwhile(file):
        monkeypatch.setattr(_files, "fsync_file", fsync_file)
        with monkeypatch.context() as other:
            other.setattr("os.getpid", lambda: -1)
            second.save(path)
        fsync_file(file)

    monkeypatch.setattr(_files, "fsync_file", meanwhile)
    first.save(path)
    assert path.read_text() == first.to_html() and [file.name for file in tmp_path.iterdir()] == ["page.html"]
