"""``clip-guidance index``, ``search`` and ``similar --duplicates``."""

import shutil

import pytest

from clip_guidance.clip import CLIP
from clip_guidance.index import ImageIndex


@pytest.fixture
def address(tmp_path):
    return tmp_path / "photos.index"


@pytest.fixture
def filled(cli, clip, good, address):
    done = cli("index", *good, "--index", address, "--model", clip, "--metadata", "album=x", "--metadata", "year=2020")
    assert done.code == 0
    return address


def test_index_is_not_shared_out_by_a_launcher(cli, good, address, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = cli("index", *good, "--index", address)
    assert done.code == 2 and "processes of a launcher would each index all images; start it once" in done.err
    assert not address.exists()


def test_index_names_the_bad_image_and_adds_the_others(cli, clip, images, good, address):
    words = ["index", images, "--index", address, "--model", clip, "--metadata", "album=x", "--batch-size", 2]
    done = cli(*words, "--json")
    assert done.code == 1 and f"failed: {images}/broken.png: is empty (0 bytes)" in done.err
    assert done.json["added"] == [str(path) for path in good] and done.json["images"] == 3
    assert done.json["failed"] == [{"path": str(images / "broken.png"), "reason": "is empty (0 bytes)"}]
    (images / "broken.png").unlink()
    good[0].rename(images / "z.png")
    assert cli(*words).table == [
        ["what", "number"],
        ["added", "0"],
        ["updated", "0"],
        ["moved", "1"],
        ["removed", "0"],
        ["unchanged", "2"],
        ["failed", "0"],
        ["images in all", "3"],
    ]
    (images / "z.png").unlink()
    done = cli(*words, "--prune", "--json")
    assert done.code == 0 and done.json["removed"] == [str(images / "z.png")] and done.json["images"] == 2


def test_search_finds_what_the_index_does(cli, clip, good, filled):
    with ImageIndex.open(filled, CLIP.from_pretrained(clip)) as index:
        expected = index.search(f"2 * red apple - {good[1]}")
    query = ["2 * red apple", "-", good[1]]  # the model is that of the index
    done = cli("search", *query, "--index", filled, "--json")
    assert done.code == 0 and done.err == ""
    assert [row["image"] for row in done.json["results"]] == [hit.path for hit in expected]
    scores = [row["similarity"] for row in done.json["results"]]
    assert scores == pytest.approx([hit.score for hit in expected], abs=1e-5)
    assert done.json["results"][0]["metadata"] == {"album": "x", "year": 2020}
    assert done.json["query"] == f"2 * red apple - {good[1]}"
    header, first = cli("search", good[2], "--index", filled, "--top-k", 1).table
    assert header == ["image", "similarity"] and first == [str(good[2]), "1.0000"]


def test_search_filters(cli, good, filled):
    found = {}
    for where in ("album = x and year >= 2020", "year < 2020", 'path ~ "*b.png"'):
        done = cli("search", "apple", "--index", filled, "--where", where, "--json")
        found[where] = {row["image"] for row in done.json["results"]}
    assert list(found.values()) == [{str(path) for path in good}, set(), {str(good[1])}]


def test_ctrl_c_keeps_what_is_acknowledged(cli, clip, good, address, monkeypatch):
    encode, calls = CLIP.image_embeds, []

    def interrupted(self, pixels):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, pixels)

    monkeypatch.setattr(CLIP, "image_embeds", interrupted)
    done = cli("index", *good, "--index", address, "--model", clip, "--batch-size", 1, "--json")
    assert done.code == 130 and "stopped; what was done is kept" in done.err
    assert done.json["added"] == [str(path) for path in good[:2]] and done.json["images"] == 2


def test_similar_groups_duplicates(cli, clip, good, filled):
    copy = shutil.copy2(good[1], good[1].with_name("copy.png"))
    done = cli("similar", *good, copy, "--duplicates", 0.9999, "--model", clip, "--json")
    assert done.json["duplicates"] == [[str(good[1]), str(copy)]]
    lines = [["group", "image"], ["1", str(good[1])], ["1", str(copy)]]
    assert cli("similar", *good, copy, "--duplicates", 0.9999, "--model", clip).table == lines
    cli("index", copy, "--index", filled)
    assert cli("similar", "--index", filled, "--duplicates", 0.9999).table == lines
    assert cli("similar", "--index", filled, "--duplicates", 0.9999, "--json").json["duplicates"] == [
        [str(good[1]), str(copy)]
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "apple", "--index", "gone"], "gone: there is no image index"),
        (["search", "apple", "--index", "INDEX", "--where", "year >"], "where: expected a value at character 7"),
        (["search", "apple", "-", "--index", "INDEX"], "query: expected a text or an image at character 8: apple -"),
        (["search", "./gone.png", "--index", "INDEX"], "query: there is no file ./gone.png, at character 1"),
        (["search", "apple", "--index", "INDEX", "--model", "JUDGE"], "their vectors cannot be compared"),
        (["index", "a.png", "--index", "INDEX", "--model", "JUDGE"], "their vectors cannot be compared"),
        (["index", "a.png", "--index", "IMAGES", "--model", "JUDGE"], "it holds other files"),
        (["index", "a.png", "--index", "new", "--metadata", "album"], "--metadata: expected KEY=VALUE, got album"),
        (["index", "a.png"], "Missing option '--index'"),
        (["similar"], "give images, or --index and --duplicates"),
        (["similar", "a.png", "--to", "b.png", "--duplicates", "0.9"], "give --to or --duplicates"),
        (["similar", "a.png", "--index", "INDEX"], "--index takes --duplicates and no images"),
        (["similar", "--index", "INDEX", "--duplicates", "1.5"], "Invalid value for '--duplicates'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_exits_with_2(cli, filled, judge, images, words, message):
    known = {"INDEX": filled, "JUDGE": judge, "IMAGES": images}
    done = cli(*(known.get(word, word) for word in words))
    assert (done.code, done.out) == (2, "")
    assert message in " ".join(done.err.replace("│", " ").split())


def test_a_filter_by_an_unknown_key_is_told_beside_the_json(cli, filled):
    done = cli("search", "apple", "--index", filled, "--where", "foo = 1", "--json")
    assert done.code == 0 and done.json["results"] == []
    assert "warning: where: no image of " in done.err
    assert done.err.rstrip().endswith("has the key 'foo'; the keys there are: path, album, year")


@pytest.mark.slow
def test_damaged_vectors_are_told_and_repaired(cli, filled, good):
    (path,) = filled.glob("vectors-*")
    with path.open("r+b") as file:
        file.seek(64)
        file.write(b"\1\2\3")
    done = cli("search", "apple", "--index", filled, "--json")
    assert len(done.json["results"]) == 2 and "warning: " in done.err and "the vectors of 1 images" in done.err
    assert ["repaired", "1"] in cli("index", *good, "--index", filled).table
    done = cli("search", "apple", "--index", filled, "--json")
    assert len(done.json["results"]) == 3 and "warning" not in done.err
    assert cli("index", *good, "--index", filled, "--json").json["repaired"] == []
