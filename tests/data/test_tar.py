"""WebDataset tars: grouping, captions, and archives that are broken or mean harm."""

import io
import json
import pickle
import tarfile

import pytest
from helpers.corpus import encode, noise, number, read_number, write_members

from clip_guidance.data import Policy, open_pairs

ANY = Policy(max_bad_share=1)


def sample(key, value=0, caption="a caption"):
    return [(f"{key}.jpg", number(value)), (f"{key}.txt", caption.encode())]


def read(path, **options):
    pairs = open_pairs(path, policy=ANY, **options)
    return {pair.key: pair.captions for pair in pairs}, pairs.counters


def test_members_in_any_order_and_case_make_one_sample(tmp_path):
    members = [("a/1.json", b'{"caption": "of json"}'), ("a/1.txt", b"of txt\nsecond"), ("a/1.JPG", number(1))]
    members += [("a/2.png", number(2)), ("a/2.json", b'{"captions": ["x", "y"], "url": "z"}'), ("a/3.seg.png", b"?")]
    found, counters = read(write_members(tmp_path / "a.tar", members))
    assert found == {"a/1": ("of txt", "second"), "a/2": ("x", "y")}
    assert counters.rows == 3 and counters.bad == {"no_caption": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [(b"", "no_caption"), (b"\xff\xfe", "caption_not_text"), (b"x" * (2 << 20), "too_many_bytes")],
)
def test_bad_texts(tmp_path, text, reason):
    path = write_members(tmp_path / "a.tar", [*sample("1"), ("2.jpg", number(2)), ("2.txt", text)])
    assert read(path)[1].bad == {reason: 1}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [(b"{", "malformed_row"), (b"[" * 100_000, "malformed_row"), (b'{"caption": 7}', "caption_not_text")],
)
def test_bad_metadata(tmp_path, metadata, reason):
    path = write_members(tmp_path / "a.tar", [*sample("1"), ("2.jpg", number(2)), ("2.json", metadata)])
    assert read(path)[1].bad == {reason: 1}


def test_a_sample_without_an_image(tmp_path):
    assert read(write_members(tmp_path / "a.tar", [*sample("1"), ("2.txt", b"alone")]))[1].bad == {"no_image": 1}


@pytest.mark.parametrize("key", ["../1", "/etc/1", "a/../../1"])
def test_names_outside_of_the_archive_are_refused(tmp_path, key):
    found, counters = read(write_members(tmp_path / "a.tar", [*sample(key), *sample("2")]))
    assert set(found) == {"2"} and counters.bad == {"unsafe_name": 1}
    assert counters.examples["unsafe_name"][0]["detail"] == f"the archive names {key}"


def test_nothing_is_unpacked_and_no_pickle_is_loaded(tmp_path):
    trace = tmp_path / "trace"

    class Harm:
        def __reduce__(self):
            return open, (str(trace), "w")

    harm = pickle.dumps(Harm())
    pickle.loads(harm).close()
    assert trace.exists()  # it does what it threatens
    trace.unlink()
    members = [("1.pyd", harm), ("1.pickle", harm), ("1.pkl", harm), ("1.pth", harm), ("1.npy", harm), *sample("1")]
    path = write_members(tmp_path / "a.tar", members)
    before = set(tmp_path.rglob("*"))
    assert read(path)[0] == {"1": ("a caption",)}
    assert set(tmp_path.rglob("*")) == before


def test_links_and_devices_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("1.jpg", tarfile.SYMTYPE), ("2.jpg", tarfile.LNKTYPE), ("3.jpg", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/hostname"
            archive.addfile(member)
        for name, data in sample("4"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    found, counters = read(tmp_path / "a.tar")
    assert set(found) == {"4"} and counters.rows == 1


def test_mac_leftovers_are_no_samples(tmp_path):
    found, counters = read(write_members(tmp_path / "a.tar", [("._1.jpg", b"mac"), (".DS_Store", b""), *sample("1")]))
    assert set(found) == {"1"} and counters.rows == 1


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_compressed_archives_are_read_too(tmp_path, mode):
    path = write_members(tmp_path / f"a.tar{mode[1:].replace(':', '.')}", [*sample("1", 1), *sample("2", 2)], mode)
    assert [read_number(pair.image) for pair in open_pairs(path)] == [1, 2]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_large_members_are_refused_unread(tmp_path, mode):
    members = [("1.jpg", bytes(100_000)), ("1.txt", b"x"), *sample("2")]
    path = write_members(tmp_path / f"a.tar{mode[1:].replace(':', '.')}", members, mode)
    pairs = open_pairs(path, policy=Policy(max_bad_share=1, max_bytes=99_999))
    assert [pair.key for pair in pairs] == ["2"] and pairs.counters.bad == {"too_many_bytes": 1}


def truncated(data):
    return data[: 3 * 1024 + 700]


def garbled(data):
    return data[:4096] + b"\xff" * 512 + data[4608:]


@pytest.mark.parametrize("harm", [truncated, garbled])
def test_a_broken_archive_keeps_what_came_before(tmp_path, harm):
    path = write_members(tmp_path / "a.tar", [*sample("1"), *sample("2"), *sample("3"), *sample("4")])
    path.write_bytes(harm(path.read_bytes()))
    found, counters = read(path)
    assert "1" in found and "4" not in found
    assert counters.examples["broken_file"][-1]["detail"].startswith(f"{path}")


@pytest.mark.parametrize("data", [b"", b"this is no archive" * 100, bytes(300)])
def test_what_is_no_archive_is_one_bad_row(tmp_path, data):
    (tmp_path / "b.tar").write_bytes(data)
    write_members(tmp_path / "a.tar", sample("1"))
    found, counters = read(tmp_path)
    assert set(found) == {"1"} and counters.bad == {"broken_file": 1}


def test_images_are_read_when_it_is_their_turn(tmp_path, monkeypatch):
    """Going over the archive, as shuffling and resuming do, reads no image."""
    from clip_guidance.data.records import StoredFile

    path = write_members(tmp_path / "a.tar", [entry for i in range(8) for entry in sample(f"{i}", i)])
    read_one, taken = StoredFile.read, []
    monkeypatch.setattr(StoredFile, "read", lambda self, limit: taken.append(self.size) or read_one(self, limit))
    next(iter(open_pairs(path, shuffle_buffer=8)))
    assert len(taken) == 2  # its caption and its image


def test_img2dataset_folder(tmp_path):
    for shard in range(2):
        metadata = json.dumps({"caption": "x"}).encode()
        members = [*sample(f"{shard:05d}0000", shard), (f"{shard:05d}0000.json", metadata)]
        write_members(tmp_path / f"{shard:05d}.tar", members)
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"metadata, which is not read")
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    (tmp_path / "preview.png").write_bytes(encode(noise()))
    pairs = open_pairs(tmp_path)
    assert [read_number(pair.image) for pair in pairs] == [0, 1] and pairs.counters.bad_share == 0
    braces = open_pairs(f"{tmp_path}/{{00000..00001}}.tar")
    assert [pair.key for pair in braces] == ["000000000", "000010000"]


def test_dots_in_names_are_parts_of_names(tmp_path):
    members = [*sample("a.b", 1, "one"), *sample("a.c.d", 2, "two"), ("x/2020.01.05.jpg", number(3))]
    members += [("x/2020.01.06.txt", b"of another"), *sample("v1.0/y", 4, "four")]
    found, counters = read(write_members(tmp_path / "a.tar", members))
    assert found == {"a.b": ("one",), "a.c.d": ("two",), "v1.0/y": ("four",)}
    assert counters.bad == {"no_caption": 1, "no_image": 1}  # of two days: no pair


def test_members_that_say_what_they_are_for(tmp_path):
    members = [("x.input.jpg", number(1)), ("x.outputs.txt", b"one")]
    members += [("y.input.jpg", number(2)), ("y.outputs.txt", b"two")]
    assert read(write_members(tmp_path / "a.tar", members))[0] == {"x": ("one",), "y": ("two",)}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_members_of_a_sample_may_lie_apart(tmp_path, mode):
    members = [(f"{i}.jpg", number(i)) for i in range(3)] + [(f"{i}.json", b'{"caption": "j"}') for i in range(3)]
    members += [(f"{i}.txt", f"caption {i}".encode()) for i in range(3)] + [("9.txt", b"no image")]
    found, counters = read(write_members(tmp_path / "a.tar", members, mode))
    assert found == {f"{i}": (f"caption {i}",) for i in range(3)} and counters.bad == {"no_image": 1}


@pytest.mark.parametrize(
    ("texts", "captions"),
    [
        ({"caption": "red"}, ("red",)),
        ({"cls": "red fox"}, ("red fox",)),
        ({"cls": "1"}, ("red fox",)),
        ({"json": '{"prompt": "red"}'}, ("red",)),
        ({"json": '{"url": "x", "blip_caption": "red"}'}, ("red",)),
        ({"txt": " \n", "json": '{"caption": "red"}'}, ("red",)),
        ({"txt": "red", "json": "{broken"}, ("red",)),
        ({"TXT": "red\ngreen"}, ("red", "green")),
    ],
)
def test_texts_of_other_kinds(tmp_path, texts, captions):
    (tmp_path / "classnames.txt").write_text("tench\nred fox\n")
    members = [("1.jpg", number(1)), *((f"1.{suffix}", text.encode()) for suffix, text in texts.items())]
    assert read(write_members(tmp_path / "a.tar", members))[0] == {"1": captions}


def test_a_class_without_a_name_is_a_bad_row(tmp_path):
    pairs = open_pairs(write_members(tmp_path / "a.tar", [("1.jpg", number(1)), ("1.cls", b"7")]), policy=ANY)
    with pytest.raises(ValueError, match="1 caption_not_text; the first is 1: class 7 has no name; list them in class"):
        list(pairs)


def test_columns_pick_members_and_keys(tmp_path):
    described = json.dumps({"alt": "of alt", "caption": "no"}).encode()
    members = [("1.input.jpg", number(1)), ("1.target.png", number(2)), ("1.txt", b"of txt"), ("1.json", described)]
    path = write_members(tmp_path / "a.tar", [*members, ("1.words.txt", b"of words")])

    def picked(**options):
        ((image, captions),) = [(read_number(pair.image), pair.captions) for pair in open_pairs(path, **options)]
        return image, captions

    assert picked(image_column="target", caption_columns=["words"]) == (2, ("of words",))
    assert picked(image_column="input.jpg", caption_columns=["alt"]) == (1, ("of alt",))
    assert picked(image_column="png", caption_columns=["txt"])[0] == 2
    with pytest.raises(ValueError, match="there is no title in the sample; it has"):
        list(open_pairs(path, image_column="png", caption_columns=["title"]))


def test_metadata_that_is_nested_deeply_costs_its_sample(tmp_path):
    deep = b'{"caption": ' + b'[{"caption": ' * 200 + b'"x"' + b"}]" * 200 + b"}"
    path = write_members(tmp_path / "a.tar", [*sample("1"), ("2.jpg", number(2)), ("2.json", deep)])
    found, counters = read(path)
    assert set(found) == {"1"}
    assert counters.examples["malformed_row"][0]["detail"] == "not JSON: nested more than 100 deep"
