"""What becomes of files: broken, touched, changed, moved, copied; on a folder, a Milvus file and a Milvus server."""

import os
import shutil
from pathlib import Path

import pytest
from index_helpers import OLD, check_hits, names, ranking, save_picture
from PIL import Image

from clip_guidance.images.load import Skipped
from clip_guidance.index import Changes, Moved
from clip_guidance.index import add as adding_module


def test_broken_pictures_are_named_and_the_others_added(index, pictures, encoded):
    folder = pictures[0].parent
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no picture")
    (folder / "cut.png").write_bytes(pictures[0].read_bytes()[:200])
    os.mkfifo(folder / "pipe.png")
    changes = index.add([folder, folder / "pipe.png", folder / "gone.png", folder.parent / "gone"], batch_size=4)
    assert names(changes.added) == names(pictures) and sum(encoded) == 6
    reasons = {Path(skipped.path).name: skipped.reason for skipped in changes.skipped}
    assert reasons.keys() == {"empty.png", "text.jpg", "cut.png", "pipe.png", "gone.png", "gone"}
    assert reasons["empty.png"] == "is empty (0 bytes)" and reasons["text.jpg"] == "is not a picture"
    assert reasons["gone.png"] == reasons["gone"] == "no such file"
    assert "cannot be read" in reasons["cut.png"] and reasons["pipe.png"] == "is no regular file"


def test_names_that_are_no_text_are_skipped(index, pictures):
    odd = os.fsencode(pictures[0].parent) + b"/\xff.png"
    shutil.copy(pictures[0], odd)
    changes = index.add(pictures[0].parent)
    assert len(changes.added) == 6
    assert [skipped.reason for skipped in changes.skipped] == ["its name is no valid text; rename it"]


def test_embeddings_that_are_no_numbers_are_skipped(clip, index, pictures, monkeypatch):
    encode = clip.image_embeds

    def broken(pixels):
        embeds = encode(pixels)
        embeds[1, 3] = float("nan")
        return embeds

    monkeypatch.setattr(clip, "image_embeds", broken)
    changes = index.add(pictures)
    assert changes.skipped == [Skipped(str(pictures[1]), "the model's embedding of it is not finite")]
    assert changes.added == [str(path) for path in pictures if path != pictures[1]]
    monkeypatch.undo()
    check_hits(index.search("apple"), ranking(clip, [pictures[0], *pictures[2:]], clip.encode_text("apple")[0]))


def test_unchanged_files_are_not_read_again(index, pictures, encoded, monkeypatch):
    index.add(pictures)
    monkeypatch.setattr(adding_module, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    assert index.add(pictures) == Changes(unchanged=6)
    assert encoded == [6]


def test_touched_files_are_read_but_not_encoded(index, pictures, encoded):
    index.add(pictures)
    os.utime(pictures[0], (OLD + 5, OLD + 5))
    assert index.add(pictures) == Changes(unchanged=6)
    assert encoded == [6] and index._store.by_path(str(pictures[0])).mtime_ns == (OLD + 5) * 10**9


def test_a_file_changed_within_the_tick_of_its_time_is_noticed(clip, index, tmp_path):
    """Same size and time, other content: that happens where a file is rewritten right after it was read."""
    path = tmp_path / "new.bmp"
    Image.new("RGB", (32, 32), "red").save(path)
    index.add(path)
    found = os.stat(path)
    Image.effect_noise((32, 32), 80).convert("RGB").save(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert os.stat(path).st_size == found.st_size
    assert index.verify().changed == [str(path)]
    assert index.add(path).updated == [str(path)]
    check_hits(index.search("apple"), ranking(clip, [path], clip.encode_text("apple")[0]))


def test_changed_files_are_encoded_again_and_keep_their_metadata(clip, index, pictures, encoded):
    index.add(pictures, metadata={"album": "x"})
    save_picture(pictures[2], seed=99)
    os.utime(pictures[2], (OLD + 5, OLD + 5))
    assert index.add(pictures) == Changes(updated=[str(pictures[2])], unchanged=5)
    assert encoded == [6, 1] and len(index) == 6
    hits = index.search("apple")
    check_hits(hits, ranking(clip, pictures, clip.encode_text("apple")[0]))
    assert all(hit.metadata == {"album": "x"} for hit in hits)


def test_a_picture_that_got_broken_stays_as_it_was(index, pictures):
    index.add(pictures)
    before = index.search("apple")
    pictures[0].write_bytes(b"half of a cop")
    changes = index.add(pictures)
    assert changes == Changes(unchanged=5, skipped=[Skipped(str(pictures[0]), "is not a picture")])
    assert index.search("apple") == before


def test_moved_files_keep_metadata_and_are_not_encoded(index, pictures, encoded):
    index.add(pictures, metadata={"album": "x"})
    before = index.search("apple")
    new = pictures[0].parent / "new"
    new.mkdir()
    for path in pictures[:2]:
        path.rename(new / path.name)
    changes = index.add(pictures[0].parent, batch_size=3)
    moved = [Moved(str(path), str(new / path.name)) for path in pictures[:2]]
    assert changes == Changes(moved=moved, unchanged=4) and encoded == [6]
    places = {move.old: move.new for move in moved}
    hits = index.search("apple")
    assert [(hit.path, hit.score, hit.metadata) for hit in hits] == [
        (places.get(hit.path, hit.path), hit.score, hit.metadata) for hit in before
    ]


def test_copies_are_pictures_of_their_own(index, pictures):
    index.add(pictures)
    copies = [shutil.copy2(pictures[0], pictures[0].with_name(f"copy{n}.png")) for n in range(2)]
    assert index.add(pictures[0].parent).added == [str(path) for path in copies] and len(index) == 8
    pictures[0].unlink()
    twins = [shutil.copy2(copies[0], pictures[0].with_name(f"twin{n}.png")) for n in range(2)]
    changes = index.add(twins)  # one of them takes the place of what is gone, and only one
    assert changes == Changes(added=[str(twins[1])], moved=[Moved(str(pictures[0]), str(twins[0]))])


def test_a_path_given_twice_counts_once(index, pictures, monkeypatch):
    monkeypatch.chdir(pictures[0].parent)
    changes = index.add(["a.png", pictures[0], "./a.png", pictures[0].parent])
    assert names(changes.added) == names(pictures)
