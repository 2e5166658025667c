"""Image folders: captions beside the images, classes by folder, and what may lie in a folder."""

import os

import pytest
from helpers.corpus import encode, noise, number

from clip_guidance.data import Policy, open_pairs
from clip_guidance.data.sources.folder import PART_IMAGES, FolderSource, Listing

ANY = Policy(max_bad_share=1)


def put(path, data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(noise()) if data is None else data)
    return path


def captions(folder, **options):
    return {pair.key: pair.captions for pair in open_pairs(folder, policy=ANY, **options)}


def test_every_line_of_a_text_is_a_caption(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "a.txt", "\ufeffa red apple\r\n\r\nun fruit à croquer\n".encode())
    assert captions(tmp_path) == {"a.png": ("a red apple", "un fruit à croquer")}


def test_folders_name_what_they_show(tmp_path):
    for name in ("train/guinea_pig/1.png", "train/cat/1.png", "train/cat/2.JPG"):
        put(tmp_path / name)
    assert captions(tmp_path) == {
        "train/cat/1.png": ("cat",),
        "train/cat/2.JPG": ("cat",),
        "train/guinea_pig/1.png": ("guinea pig",),
    }


def test_where_one_image_has_a_text_the_folder_is_no_class(tmp_path):
    for name in ("photos/a.png", "photos/b.png", "cat/c.png"):
        put(tmp_path / name)
    put(tmp_path / "photos/a.txt", b"a caption")
    pairs = open_pairs(tmp_path, policy=ANY)
    assert {pair.key: pair.captions for pair in pairs} == {"photos/a.png": ("a caption",), "cat/c.png": ("cat",)}
    assert pairs.counters.examples["no_caption"][0]["detail"] == "there is no b.txt beside it"


def test_the_opened_folder_itself_is_no_class(tmp_path):
    put(tmp_path / "a.png")
    pairs = open_pairs(tmp_path, policy=ANY)
    with pytest.raises(
        ValueError, match="none of 1 rows gives a pair: 1 no_caption; the first is a.png: there is no a.txt"
    ):
        list(pairs)


def test_names_with_spaces_and_of_any_script(tmp_path):
    names = ["white space/día soleado.png", "犬/い ぬ.png", 'emoji 🍎/quote\'s "file".png', "percent%20/a#b?.png"]
    for name in names:
        put(tmp_path / name)
    assert set(captions(tmp_path)) == set(names)


def test_a_name_that_is_not_unicode(tmp_path):
    put(tmp_path / "cat" / os.fsdecode(b"caf\xe9.png"))
    put(tmp_path / "cat" / os.fsdecode(b"caf\xe8.png"), b"")
    pairs = open_pairs(tmp_path, policy=ANY, quarantine=tmp_path / "bad.jsonl")
    assert [pair.captions for pair in pairs] == [("cat",)] and pairs.counters.bad == {"empty": 1}


def test_hidden_files_and_other_files_are_left_out(tmp_path):
    for name in ("cat/a.png", "cat/.b.png", ".git/c.png", "cat/._a.png", "cat/notes.md", "cat/weights.pickle"):
        put(tmp_path / name)
    assert set(captions(tmp_path)) == {"cat/a.png"}


def test_a_loop_of_links_ends(tmp_path):
    put(tmp_path / "cat/a.png")
    (tmp_path / "cat/again").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert set(captions(tmp_path)) == {"cat/a.png"}


def test_links_are_followed_and_broken_ones_are_missing(tmp_path):
    put(tmp_path / "elsewhere/a.png")
    folder = tmp_path / "data"
    (folder / "cat").mkdir(parents=True)
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    (folder / "cat/gone.png").symlink_to(tmp_path / "nothing.png")
    (folder / "cat/loop.png").symlink_to(folder / "cat/loop.png")
    pairs = open_pairs(folder, policy=ANY)
    assert [pair.key for pair in pairs] == ["dog/a.png"]
    assert pairs.counters.bad == {"missing": 1, "unreadable": 1}


def test_a_folder_that_may_not_be_listed_is_one_bad_row(tmp_path, monkeypatch):
    put(tmp_path / "cat/a.png")
    put(tmp_path / "dog/b.png")
    scandir = os.scandir

    def guarded(path):  # for root no mode of a folder denies anything
        if os.path.basename(path) == "dog":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    pairs = open_pairs(tmp_path, policy=ANY)
    assert [pair.key for pair in pairs] == ["cat/a.png"]
    assert pairs.counters.examples["unreadable"][0]["detail"] == "folder dog: Permission denied"


def test_parts_are_files_in_order(tmp_path):
    files = [f"cat/{i:04d}.png" for i in range(2 * PART_IMAGES + 3)]
    source = FolderSource(Listing(tmp_path, files, []))
    assert [part.rows for part in source.parts] == [PART_IMAGES, PART_IMAGES, 3]
    assert [record.key for index in range(3) for record in source.read(index)] == files


def test_images_named_by_a_table_in_a_subfolder(tmp_path):
    put(tmp_path / "train/images/a.png", number(5))
    put(tmp_path / "train/metadata.jsonl", b'{"file_name": "images/a.png", "text": "five"}\n')
    (pair,) = open_pairs(tmp_path)
    assert pair.captions == ("five",) and pair.image.getpixel((0, 0)) == (0, 5, 0)
