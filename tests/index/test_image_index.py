"""The index as a user meets it: adding, searching, changing, moved and broken files, export, refusals.

Every test that uses the fixture ``index`` runs on a folder, on a Milvus file, and on a Milvus server over the network.
"""

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.index_helpers import OLD, check_hits, names, ranking, save_image
from PIL import Image
from safetensors import safe_open

import clip_guidance as cg
from clip_guidance.index import Changes, ImageIndexError, Moved, Term
from clip_guidance.metrics.similarity import image_similarity

# Adding and searching


@pytest.mark.parametrize("batch_size", [4, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 64))])
def test_search_equals_sorting_all_cosines(clip, index, images, batch_size):
    assert index.add(images, batch_size=batch_size) == Changes(added=[str(path) for path in images])
    assert len(index) == 6 and images[0] in index and "gone.png" not in index
    text, (a, b) = clip.encode_text("apple")[0], clip.encode_image(images[:2])
    check_hits(index.search("apple", k=6), ranking(clip, images, text))
    check_hits(index.search(images[0], k=3), ranking(clip, images, a)[:3])
    assert index.search(images[0])[0].score == pytest.approx(1, abs=1e-5)
    query = f"2 * apple - {images[1]}"
    check_hits(index.search(query), ranking(clip, images, 2 * text - b))
    terms = [Term("apple", 2), Term(Image.open(images[1]), -1)]
    check_hits(index.search(terms), ranking(clip, images, 2 * text - b))


def test_what_is_added_is_there_after_reopening(open_index, clip, index, images):
    index.add(images[0].parent)
    before = index.search("apple")
    with open_index(clip, create=False) as again:
        assert again.search("apple") == before and len(before) == 6
        check_hits(again.search("apple", exact=True), [(hit.path, hit.score) for hit in before])


def test_half_precision_takes_half_the_disk(tmp_path, clip, images):
    with cg.ImageIndex.open(tmp_path / "half", clip, dtype="float16") as half:
        half.add(images)
        best = ranking(clip, images, clip.encode_text("apple")[0])[0][1]
        assert half.search("apple")[0].score == pytest.approx(best, abs=1e-3)
        assert os.path.getsize(next((tmp_path / "half").glob("vectors-*"))) == 64 + 6 * 12 * 2


def test_many_queries_at_once(clip, index, images):
    index.add(images, metadata=lambda path: {"first": path.name < "d"})
    queries = clip.encode_text(["apple", "worm", "car"])
    found = index.search_embeds(queries, clip.fingerprint(), k=2, where={"first": True})
    for query, hits in zip(queries, found, strict=True):
        check_hits(hits, ranking(clip, images[:3], query)[:2])
    with pytest.raises(ValueError, match=r"embeds: expected the shape \(q, 12\), got \(3, 5\)"):
        index.search_embeds(torch.ones(3, 5), clip.fingerprint())
    with pytest.raises(ValueError, match=r"embeds: expected unit vectors"):
        index.search_embeds(2 * queries, clip.fingerprint())
    assert index.search_embeds(queries[:0], clip.fingerprint()) == []


def test_an_empty_index_finds_nothing(index):
    assert index.search("apple") == [] and len(index) == 0 and index.duplicates() == []
    assert index.add([]) == Changes()
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        index.search("apple", k=0)


def test_filters_are_exact_at_any_selectivity(clip, index, images):
    index.add(images, metadata=lambda path: {"n": "abcdef".index(path.stem), "odd": path.stem in "bdf"})
    query = clip.encode_text("apple")[0]
    for limit in range(7):
        check_hits(index.search("apple", where=f"n < {limit}"), ranking(clip, images[:limit], query) if limit else [])
    hits = index.search("apple", where="odd = true and n > 1")
    check_hits(hits, ranking(clip, [images[3], images[5]], query))
    assert all(hit.metadata == {"n": "abcdef".index(Path(hit.path).stem), "odd": True} for hit in hits)
    with pytest.raises(ValueError, match="where: expected a value at character 4, it ends"):
        index.search("apple", where="n <")


# Metadata, deleting, synchronising


def test_metadata_is_put_over_what_is_there(index, images):
    index.add(images, metadata={"album": "x", "deep": {"a": 1}})
    index.add(images[:2], metadata={"album": "y", "year": 2020})
    assert index.update_metadata({"deep": {"b": [1, "é"]}}, images[0]) == 1
    assert index.update_metadata({"album": None}, where="album = x") == 4
    metadata = {Path(entry.path).name: entry.metadata for entry in index.entries()}
    assert metadata["a.png"] == {"album": "y", "deep": {"a": 1, "b": [1, "é"]}, "year": 2020}
    assert metadata["b.png"] == {"album": "y", "deep": {"a": 1}, "year": 2020}
    assert metadata["c.png"] == {"deep": {"a": 1}}
    assert names(entry.path for entry in index.entries("year = 2020")) == ["a.png", "b.png"]
    for bad in ({"a": float("nan")}, {"a": {1, 2}}):
        with pytest.raises(ValueError, match="metadata: expected JSON"):
            index.add(images, metadata=bad)


def test_deleting(index, images):
    index.add(images, metadata=lambda path: {"n": "abcdef".index(path.stem)})
    assert names(index.delete(images[0])) == ["a.png"]
    assert names(index.delete(where="n in (1, 2)")) == ["b.png", "c.png"]
    assert names(index.delete(images[0].parent, where="n = 3")) == ["d.png"]
    assert index.delete("elsewhere") == [] and names(hit.path for hit in index.search(images[5])) == [
        "f.png",
        "e.png",
    ]
    assert images[0].exists() and index.compact() == 4
    assert names(hit.path for hit in index.search(images[5])) == ["f.png", "e.png"]
    assert names(index.add(images).added) == ["a.png", "b.png", "c.png", "d.png"]
    assert sorted(names(index.delete([images[0].parent]))) == names(images) and len(index) == 0
    with pytest.raises(ValueError, match="expected paths, where or both: which images are meant?"):
        index.delete()


def test_verify_tells_and_sync_puts_right(clip, index, images, encoded):
    index.add(images, metadata={"album": "x"})
    assert index.verify() == index.verify(full=True) and index.verify().intact == 6
    images[0].unlink()
    save_image(images[1], seed=99)
    os.utime(images[1], (OLD + 5, OLD + 5))
    elsewhere = images[2].parent.parent / "elsewhere"
    elsewhere.mkdir()
    images[2].rename(elsewhere / "c.png")
    os.mkfifo(images[0])  # would be waited for if it were read
    assert names(index.verify().missing) == ["a.png", "c.png"]
    images[0].unlink()
    found = index.verify()
    assert (names(found.missing), names(found.changed), found.intact) == (["a.png", "c.png"], ["b.png"], 3)
    changes = index.sync(elsewhere, batch_size=2)
    moved = [Moved(str(images[2]), str(elsewhere / "c.png"))]
    assert changes == Changes(updated=[str(images[1])], moved=moved, removed=[str(images[0])])
    assert encoded == [6, 1] and index.verify().intact == len(index) == 5
    now = [images[1], elsewhere / "c.png", *images[3:]]
    hits = index.search("apple")
    check_hits(hits, ranking(clip, now, clip.encode_text("apple")[0]))
    assert all(hit.metadata == {"album": "x"} for hit in hits)


def test_full_verification_reads_every_file(index, images):
    index.add(images)
    content = bytearray(images[0].read_bytes())
    content[-20] ^= 1  # as a failing disk does: same size, same time
    images[0].write_bytes(content)
    os.utime(images[0], (OLD, OLD))
    assert index.verify().intact == 6
    assert names(index.verify(full=True).changed) == ["a.png"]


def test_duplicates(clip, index, images):
    copy = shutil.copy2(images[3], images[3].with_name("copy.png"))
    index.add([*images, copy], metadata=lambda path: {"kept": path.name != "copy.png"})
    assert index.duplicates(0.9999) == [[str(images[3]), str(copy)]]
    assert index.duplicates(0.9999, where="kept = true") == []
    lowest = float(image_similarity(clip, images).min())
    assert names(index.duplicates(max(lowest, 1e-3))[0]) == names([*images, copy])


# Export


def test_export_is_the_index(tmp_path, clip, index, images):
    index.add(images, metadata=lambda path: {"name": path.stem})
    index.delete(images[1])
    assert index.export(tmp_path / "out") == 5
    lines = (tmp_path / "out" / "entries.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    kept = [images[0], *images[2:]]
    assert [row["path"] for row in rows] == [str(path) for path in kept]
    assert [row["metadata"] for row in rows] == [{"name": path.stem} for path in kept]
    assert [row["size"] for row in rows] == [path.stat().st_size for path in kept]
    with safe_open(tmp_path / "out" / "embeds.safetensors", "pt") as file:
        torch.testing.assert_close(file.get_tensor("embeds"), clip.encode_image(kept))
        assert file.metadata() == {"fingerprint": clip.fingerprint(), "model": str(clip.name_or_path)}
    index.delete(where={})
    assert index.export(tmp_path / "out") == 0
    with safe_open(tmp_path / "out" / "embeds.safetensors", "np") as file:
        assert file.get_tensor("embeds").shape == (0, 12)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["embeds.safetensors", "entries.jsonl"]


# Refusals, interruption, threads


def test_another_model_is_refused(open_index, clip, other_clip, index, images):
    index.add(images)
    made = rf"index: was made with the CLIP .* \(fingerprint {clip.fingerprint()}\), this one's is "
    with pytest.raises(ImageIndexError, match=f"{made}{other_clip.fingerprint()}: their vectors cannot be compared"):
        open_index(other_clip)
    with pytest.raises(ImageIndexError, match=made):
        index.search_embeds(other_clip.encode_text("apple"), other_clip.fingerprint())
    assert index.fingerprint == clip.fingerprint() and index.model == str(clip.name_or_path)


def test_without_a_clip_all_but_encoding_works(open_index, clip, index, images):
    index.add(images)
    with open_index() as bare:
        assert len(bare) == 6 and bare.verify().intact == 6
        assert bare.update_metadata({"a": 1}, images[0]) == 1 and bare.delete(images[1]) == [str(images[1])]
        found = bare.search_embeds(clip.encode_text("apple"), clip.fingerprint())[0]
        check_hits(found, [(hit.path, hit.score) for hit in index.search("apple")])
        for needs in (lambda: bare.search("apple"), lambda: bare.add(images), lambda: bare.sync()):
            with pytest.raises(ImageIndexError, match=r"index: was opened without a CLIP: ImageIndex\.open\("):
                needs()


def test_opening_what_is_not_there(tmp_path, clip):
    for options in ({"clip": clip, "create": False}, {}):
        with pytest.raises(ImageIndexError, match="none: there is no image index"):
            cg.ImageIndex.open(tmp_path / "none", **options)
    with pytest.raises(ValueError, match="dtype: expected 'float32' or 'float16', got 'int8'"):
        cg.ImageIndex.open(tmp_path / "none", clip, dtype="int8")
    assert not (tmp_path / "none").exists()


def test_ctrl_c_loses_nothing_acknowledged(open_index, clip, index, images, monkeypatch):
    encode, acknowledged = clip.image_embeds, []

    def interrupted(pixels):
        if len(acknowledged) == 2:
            raise KeyboardInterrupt
        return encode(pixels)

    monkeypatch.setattr(clip, "image_embeds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        for changes in index.iter_add(images, batch_size=2):
            acknowledged.append(changes)
    monkeypatch.undo()
    with open_index(clip) as again:
        assert names(entry.path for entry in again.entries()) == ["a.png", "b.png", "c.png", "d.png"]
        assert names(again.add(images).added) == ["e.png", "f.png"]
    check_hits(index.search("apple"), ranking(clip, images, clip.encode_text("apple")[0]))


@pytest.mark.slow
def test_threads_may_share_an_index(clip, index, images):
    index.add(images[:3])
    query, found = clip.encode_text("apple").numpy(), []

    def search():
        found.extend(len(index.search_embeds(query, clip.fingerprint())[0]) for _ in range(20))

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    index.add(images[3:], batch_size=1)
    for thread in threads:
        thread.join()
    assert len(found) == 60 and set(found) <= {3, 4, 5, 6}
    np.testing.assert_equal(len(index.search_embeds(query, clip.fingerprint())[0]), 6)
