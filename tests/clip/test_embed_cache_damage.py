"""A cache that others have damaged or made: the CLIP's own numbers, or refused by name, in time."""

import contextlib
import os
import shutil
import sqlite3
import zlib

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from helpers.factories import save_tiny_clip
from helpers.limits import little_time
from hypothesis import given, settings
from PIL import Image

from clip_guidance.clip import CLIP
from clip_guidance.clip.embed_cache import CachedCLIP, EmbedCache, EmbedCacheError


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> CLIP:
    return CLIP.from_pretrained(save_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in "abcd":
        Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in "abcd"]


@pytest.fixture(scope="module")
def expected(clip, paths):
    return clip.encode_image(paths)


@pytest.fixture(scope="module")
def filled(clip, paths, tmp_path_factory):
    """The folder of a cache that knows the images; nobody has it open."""
    folder = tmp_path_factory.mktemp("filled") / "cache"
    with EmbedCache(folder) as cache:
        CachedCLIP(clip, cache).encode_image(paths)
    return folder


@pytest.fixture
def folder(filled, tmp_path):
    return shutil.copytree(filled, tmp_path / "cache")


def encoded(clip, paths, folder):
    with EmbedCache(folder) as cache, little_time(20):
        return CachedCLIP(clip, cache).encode_image(paths)


def change(folder, *statements) -> None:
    (path,) = folder.glob("*.sqlite")
    file = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        file.execute(statement)
    file.close()


@pytest.mark.parametrize(
    "value",
    [
        "zeroblob(48)",
        "zeroblob(4)",  # one number would be spread over the whole vector
        "x'0000c07f'",
        "'text'",
        "x'010203'",
        "x''",
        "(SELECT embed FROM embeds WHERE rowid = 2)",
        "substr(embed, 1, 44) || x'00000080'",
        "1.5",
    ],
)
@pytest.mark.parametrize("checksum", ["checksum", "NULL"])
def test_a_damaged_vector_is_computed_anew_and_replaced(clip, paths, expected, folder, value, checksum):
    unknown = ("SELECT" in value or "||" in value) and checksum == "NULL"  # an older cache has the length alone
    column = f"CAST({value} AS BLOB)" if "||" in value else value
    change(folder, f"UPDATE embeds SET embed = {column}, checksum = {checksum} WHERE rowid = 1")
    if not unknown:
        torch.testing.assert_close(encoded(clip, paths, folder), expected)
        change(folder, "UPDATE embeds SET embed = zeroblob(48) WHERE rowid > 1")
        torch.testing.assert_close(encoded(clip, paths, folder), expected)
        with contextlib.closing(sqlite3.connect(next(folder.glob("*.sqlite")))) as file, file:
            rows = file.execute("SELECT hash, embed, checksum FROM embeds").fetchall()
        assert len(rows) == 4 and all(zlib.crc32(embed, zlib.crc32(name.encode())) == crc for name, embed, crc in rows)


def test_a_cache_without_checksums_is_used_and_gets_them(clip, paths, expected, folder, monkeypatch):
    change(folder, "CREATE TABLE held AS SELECT hash, embed FROM embeds WHERE rowid != 2", "DROP TABLE embeds")
    change(folder, "CREATE TABLE embeds (hash TEXT PRIMARY KEY, embed BLOB NOT NULL)")
    change(folder, "INSERT INTO embeds SELECT * FROM held", "DROP TABLE held")
    passes, encode = [], CLIP.image_embeds
    monkeypatch.setattr(CLIP, "image_embeds", lambda self, pixels: passes.append(len(pixels)) or encode(self, pixels))
    for _ in range(2):
        torch.testing.assert_close(encoded(clip, paths, folder), expected)
    assert passes == [1]


@pytest.mark.parametrize(
    "statements",
    [
        ("DROP TABLE embeds", "CREATE VIEW embeds AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
         " SELECT 'a' AS hash, x'00' AS embed, i AS checksum FROM n"),
        ("CREATE TRIGGER t AFTER INSERT ON embeds BEGIN DELETE FROM embeds; END",),
        ("CREATE TABLE notes (text)",),
    ],
)  # fmt: skip
def test_another_schema_is_refused(clip, paths, folder, statements):
    change(folder, *statements)
    with pytest.raises(EmbedCacheError, match=r"cache/\w+-float32\.sqlite: holds the (view|trigger|table) \w+, "):
        encoded(clip, paths, folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_pipe_is_refused_instead_of_waited_for(clip, paths, folder, suffix):
    (path,) = folder.glob("*.sqlite")
    path.with_name(path.name + suffix).unlink(missing_ok=True)
    os.mkfifo(path.with_name(path.name + suffix))
    with pytest.raises(EmbedCacheError, match=rf"float32\.sqlite{suffix} cannot be read \(not a regular file\)"):
        encoded(clip, paths, folder)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(EmbedCacheError, match=r"cache: cannot be a folder of embeddings \(File exists\)$"):
        EmbedCache(tmp_path / "cache")


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
def test_whatever_bytes_changed_it_is_right_or_refused(clip, paths, expected, filled, tmp_path_factory, changed, cut):
    folder = shutil.copytree(filled, tmp_path_factory.mktemp("damaged") / "cache")
    (path,) = folder.glob("*.sqlite")
    data = bytearray(path.read_bytes())
    for place, byte in changed:
        data[place % len(data)] = byte
    path.write_bytes(data[: changed[0][0] % len(data)] if cut else data)
    try:
        found = encoded(clip, paths, folder)
    except EmbedCacheError as error:
        assert len(str(error)) <= 300 and path.name in str(error)
        return
    torch.testing.assert_close(found, expected)
