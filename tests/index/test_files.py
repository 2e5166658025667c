"""What becomes of files: broken, touched, changed, moved, copied; on a folder, a Milvus file and a Milvus server."""

import os
import shutil
from pathlib import Path

import pytest
from helpers.index_helpers import OLD, check_hits, names, ranking, save_image
from PIL import Image

from clip_guidance.images.load import Skipped
from clip_guidance.index import Changes, Moved
from clip_guidance.index import add as adding_module


def test_broken_images_are_named_and_the_others_added(index, images, encoded):
    folder = images[0].parent
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.png").write_bytes(images[0].read_bytes()[:200])
    os.mkfifo(folder / "pipe.png")
    changes = index.add([folder, folder / "pipe.png", folder / "gone.png", folder.parent / "gone"], batch_size=4)
    assert names(changes.added) == names(images) and sum(encoded) == 6
    reasons = {Path(skipped.path).name: skipped.reason for skipped in changes.skipped}
    assert reasons.keys() == {"empty.png", "text.jpg", "cut.png", "pipe.png", "gone.png", "gone"}
    assert reasons["empty.png"] == "is empty (0 bytes)" and reasons["text.jpg"] == "is not an image"
    assert reasons["gone.png"] == reasons["gone"] == "no such file"
    assert "cannot be read" in reasons["cut.png"] and reasons["pipe.png"] == "cannot be read (not a regular file)"


def test_names_that_are_no_text_are_skipped(index, images):
    odd = os.fsencode(images[0].parent) + b"/\xff.png"
    shutil.copy(images[0], odd)
    changes = index.add(images[0].parent)
    assert len(changes.added) == 6
    assert [skipped.reason for skipped in changes.skipped] == ["its name is not valid text; rename it"]


def test_embeddings_that_are_no_numbers_are_skipped(clip, index, images, monkeypatch):
    encode = clip.image_embeds

    def broken(pixels):
        embeds = encode(pixels)
        embeds[1, 3] = float("nan")
        return embeds

    monkeypatch.setattr(clip, "image_embeds", broken)
    changes = index.add(images)
    assert changes.skipped == [Skipped(str(images[1]), "the model's embedding of it is not finite")]
    assert changes.added == [str(path) for path in images if path != images[1]]
    monkeypatch.undo()
    check_hits(index.search("apple"), ranking(clip, [images[0], *images[2:]], clip.encode_text("apple")[0]))


def test_unchanged_files_are_not_read_again(index, images, encoded, monkeypatch):
    index.add(images)
    monkeypatch.setattr(adding_module, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    assert index.add(images) == Changes(unchanged=6)
    assert encoded == [6]


def test_touched_files_are_read_but_not_encoded(index, images, encoded):
    index.add(images)
    os.utime(images[0], (OLD + 5, OLD + 5))
    assert index.add(images) == Changes(unchanged=6)
    assert encoded == [6] and index._store.by_path(str(images[0])).mtime_ns == (OLD + 5) * 10**9


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


def test_changed_files_are_encoded_again_and_keep_their_metadata(clip, index, images, encoded):
    index.add(images, metadata={"album": "x"})
    save_image(images[2], seed=99)
    os.utime(images[2], (OLD + 5, OLD + 5))
    assert index.add(images) == Changes(updated=[str(images[2])], unchanged=5)
    assert encoded == [6, 1] and len(index) == 6
    hits = index.search("apple")
    check_hits(hits, ranking(clip, images, clip.encode_text("apple")[0]))
    assert all(hit.metadata == {"album": "x"} for hit in hits)


def test_an_image_that_got_broken_stays_as_it_was(index, images):
    index.add(images)
    before = index.search("apple")
    images[0].write_bytes(b"half of a cop")
    changes = index.add(images)
    assert changes == Changes(unchanged=5, skipped=[Skipped(str(images[0]), "is not an image")])
    assert index.search("apple") == before


def test_moved_files_keep_metadata_and_are_not_encoded(index, images, encoded):
    index.add(images, metadata={"album": "x"})
    before = index.search("apple")
    new = images[0].parent / "new"
    new.mkdir()
    for path in images[:2]:
        path.rename(new / path.name)
    changes = index.add(images[0].parent, batch_size=3)
    moved = [Moved(str(path), str(new / path.name)) for path in images[:2]]
    assert changes == Changes(moved=moved, unchanged=4) and encoded == [6]
    places = {move.old: move.new for move in moved}
    hits = index.search("apple")
    assert [(hit.path, hit.score, hit.metadata) for hit in hits] == [
        (places.get(hit.path, hit.path), hit.score, hit.metadata) for hit in before
    ]


def test_copies_are_images_of_their_own(index, images):
    index.add(images)
    copies = [shutil.copy2(images[0], images[0].with_name(f"copy{n}.png")) for n in range(2)]
    assert index.add(images[0].parent).added == [str(path) for path in copies] and len(index) == 8
    images[0].unlink()
    twins = [shutil.copy2(copies[0], images[0].with_name(f"twin{n}.png")) for n in range(2)]
    changes = index.add(twins)  # one of them takes the place of what is gone, and only one
    assert changes == Changes(added=[str(twins[1])], moved=[Moved(str(images[0]), str(twins[0]))])


def test_a_path_given_twice_counts_once(index, images, monkeypatch):
    monkeypatch.chdir(images[0].parent)
    changes = index.add(["a.png", images[0], "./a.png", images[0].parent])
    assert names(changes.added) == names(images)
