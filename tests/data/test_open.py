"""What a path is taken for, and what is said where it is nothing."""

import subprocess

import pytest
from helpers.corpus import encode, noise, number, write_csv, write_folder, write_parquet, write_tar

from clip_guidance.data import SourceError, open_pairs
from clip_guidance.data.open import expand_braces

ROWS = [("a", number(1), ["one"])]


@pytest.mark.parametrize(
    ("writers", "kind", "captions"),
    [
        ([write_folder], "image folder", ("one",)),
        ([write_folder, write_csv], "table", ("one",)),
        ([write_folder, write_csv, write_parquet, write_tar], "WebDataset tars", ("one",)),
        ([write_folder, write_parquet], "table", ("one",)),  # as in a clone of a data set with a preview
        ([write_parquet], "table", ("one",)),
    ],
)
def test_a_folder_is_what_says_most(tmp_path, writers, kind, captions):
    for write in writers:
        write(tmp_path, ROWS)
    pairs = open_pairs(tmp_path)
    assert pairs.source.kind == kind and [pair.captions for pair in pairs] == [captions]


def test_parquet_without_images_beside_images_is_no_source(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_folder(tmp_path, ROWS)
    pq.write_table(pa.table({"url": ["http://example.org"], "caption": ["x"]}), tmp_path / "00000.parquet")
    assert open_pairs(tmp_path).source.kind == "image folder"


def test_a_path_with_spaces_and_braces_in_its_name(tmp_path):
    folder = tmp_path / "my {old} photos [1]"
    folder.mkdir()
    assert [pair.captions for pair in open_pairs(write_csv(folder, ROWS))] == [("one",)]


def test_globs_are_sorted(tmp_path):
    for name in "ba":
        write_csv(tmp_path, [(name, number(0), [name])], name=f"{name}.csv")
    assert [pair.captions for pair in open_pairs(f"{tmp_path}/*.csv")] == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.csv", "none.csv: there is no such file or folder; supported are a folder of images with captions.csv"),
        ("no/such/place", "no/such/place: there is no such file or folder; .* or the owner/name of a Hub data set"),
        ("*.tar", r"\*.tar: there is no such file"),
    ],
)
def test_what_is_not_there(name, message):
    with pytest.raises(SourceError, match=message):
        open_pairs(name)


def test_braces_name_files_that_must_be_there(tmp_path):
    write_tar(tmp_path, ROWS)
    with pytest.raises(SourceError, match=r"\{00000..00002\}.tar: there is no .*/00001.tar"):
        open_pairs(f"{tmp_path}/{{00000..00002}}.tar")


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(SourceError, match="found nothing; supported are"):
        open_pairs(tmp_path)
    for name in ("a.docx", "b.docx", "c.zip", "noext"):
        (tmp_path / name).touch()
    with pytest.raises(SourceError, match="found 2 .docx, 1 .zip, 1 without suffix; supported are"):
        open_pairs(tmp_path)
    with pytest.raises(SourceError, match="c.zip: a .zip cannot be read; supported are"):
        open_pairs(tmp_path / "c.zip")
    (tmp_path / "a.png").write_bytes(encode(noise()))
    (tmp_path / "b.csv").write_text("image,caption\n")
    with pytest.raises(SourceError, match=r"expected one kind of file, found 1 .csv, 1 .png|found 1 .png, 1 .csv"):
        open_pairs(f"{tmp_path}/{{a.png,b.csv}}")


@pytest.mark.parametrize(
    "text", ["a", "s-{0..3}.tar", "{08..11}", "{000..002}/{a,b}", "x{a,b}y{1..2}z", "{a,b}{c,d}{e,f}"]
)
def test_braces_expand_as_in_a_shell(text):
    shell = subprocess.run(["bash", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True)
    assert expand_braces(text) == shell.stdout.split()
