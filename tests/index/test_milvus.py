"""Milvus beside the catalogue: an embedded file and, through the network, a server on 127.0.0.1.

How an index is used is tested for all stores in ``test_image_index.py``; here is what only Milvus has. Answers are
compared with the exact ones of the catalogue: of so few vectors Milvus finds every nearest neighbour.
"""

import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
from helpers.index_helpers import free_port, need_milvus, put, save_image, start_server, unit_vectors

import clip_guidance as cg
from clip_guidance.cli.main import run
from clip_guidance.index import ImageIndexError
from clip_guidance.index import open as opening
from clip_guidance.index.compact import compact
from clip_guidance.index.entries import exactly
from clip_guidance.index.milvus import MilvusStore
from clip_guidance.index.where import ALL, compile_where

need_milvus()

META = {"fingerprint": "0" * 16, "model": "none", "dim": 8, "dtype": "float32"}


@pytest.fixture
def address(milvus_address) -> str:
    return milvus_address


def make(address: str, folder: Path, **options) -> MilvusStore:
    return MilvusStore(folder / "catalogue", META, address, **options)


@pytest.fixture
def store(address, tmp_path):
    store = make(address, tmp_path)
    yield store
    store.close()


def check_equals_exact(store: MilvusStore, condition=ALL, k: int = 10) -> list[str]:
    """Milvus finds what comparing everything finds; returns the paths of the first query."""
    queries = unit_vectors(3, seed=9)
    found, expected = (store.search(queries, k, condition, exact=exact) for exact in (False, True))
    assert [[hit.path for hit in row] for row in found] == [[hit.path for hit in row] for row in expected]
    scores = [[hit.score for hit in row] for row in found]
    np.testing.assert_allclose(scores, [[hit.score for hit in row] for row in expected], atol=1e-5)
    return [hit.path for hit in found[0]]


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The methods of Milvus that are called."""
    calls, ask = [], MilvusStore._request

    def noting(self, method, *arguments, **options):
        calls.append(method)
        return ask(self, method, *arguments, **options)

    monkeypatch.setattr(MilvusStore, "_request", noting)
    return calls


def test_search_add_change_delete(store, asked):
    assert store.search(unit_vectors(1), 5) == [[]]
    put(store, [f"/{n}" for n in range(60)], unit_vectors(60))
    check_equals_exact(store)
    asked.clear()
    before = check_equals_exact(store)
    assert asked == ["search"]
    store.delete(exactly(before[:3]))
    assert check_equals_exact(store)[:3] == before[3:6]
    put(store, [before[5]], -unit_vectors(1, seed=9))  # the opposite of the query
    assert before[5] not in check_equals_exact(store)
    store.flush()
    assert len(check_equals_exact(store, k=100)) == 57 == store._size()
    assert store.search(unit_vectors(1)[:0], 5) == []


def test_cosines_and_their_order_are_computed_from_the_catalogue(store, monkeypatch):
    """Milvus says which images; the last bit of its cosines differs from call to call."""
    put(store, [f"/{n}" for n in range(60)], unit_vectors(60))
    ask = MilvusStore._request

    def numbers_alone(self, method, *arguments, **options):
        found = ask(self, method, *arguments, **options)
        return [[{"id": hit["id"]} for hit in row[::-1]] for row in found] if method == "search" else found

    monkeypatch.setattr(MilvusStore, "_request", numbers_alone)
    check_equals_exact(store)


def test_filters_are_exact_and_narrow_ones_do_not_ask_milvus(store, asked):
    put(store, [f"/{n}" for n in range(200)], unit_vectors(200))
    for number in range(200):
        store.patch(exactly([f"/{number}"]), f'{{"n": {number}}}')
    for limit in (0, 1, 10, 11, 100, 199, 200):
        asked.clear()
        found = check_equals_exact(store, compile_where(f"n < {limit}"), k=7)
        assert len(found) == min(7, limit) and all(int(path[1:]) < limit for path in found)
        assert asked == (["search"] if limit > 10 else [])


def test_a_filter_that_milvus_cannot_fill_is_answered_exactly(store, asked):
    """The images that pass are the farthest: none is among those that Milvus is asked for."""
    embeds = unit_vectors(200)
    order = np.argsort(embeds @ unit_vectors(1, seed=9)[0])
    put(store, [f"/{n}" for n in range(200)], embeds)
    store.patch(exactly(f"/{n}" for n in order[:20]), '{"far": true}')
    asked.clear()
    (hits,) = store.search(unit_vectors(1, seed=9), 2, compile_where("far = true"))
    assert [hit.path for hit in hits] == [f"/{n}" for n in order[19:17:-1]] and asked == ["search"]


def test_what_could_not_be_sent_is_sent_later(address, tmp_path, store, monkeypatch):
    """The catalogue acknowledges first; a kill or a failure after that is made good on opening."""
    put(store, list("ab"), unit_vectors(2))

    def killed(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(MilvusStore, "_send", killed)
    with pytest.raises(KeyboardInterrupt):
        put(store, list("bcd"), unit_vectors(3, seed=1))
    with pytest.raises(KeyboardInterrupt):
        store.delete(exactly("a"))
    monkeypatch.undo()
    assert store._size() == 2 and store._pending()
    assert sorted(check_equals_exact(store)) == list("bcd")  # from the catalogue meanwhile
    again = make(address, tmp_path)
    assert not again._pending() and again._size() == 3
    assert sorted(check_equals_exact(again)) == list("bcd")
    again.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", ["emptied", *(pytest.param(each, marks=pytest.mark.slow) for each in ("dropped", "too much"))]
)
def test_a_collection_that_is_not_the_catalogue_is_made_anew(address, tmp_path, store, damage):
    put(store, [f"/{n}" for n in range(30)], unit_vectors(30))
    before = check_equals_exact(store)
    if damage == "dropped":
        store._request("drop_collection", store.collection)
    elif damage == "emptied":
        store._request("delete", store.collection, ids=[1, 2, 3])
    else:
        store._request("upsert", store.collection, [{"id": 999, "embeds": unit_vectors(1, seed=9)[0]}])
    again = make(address, tmp_path)
    assert again._size() == 30 and check_equals_exact(again) == before
    again.close()


def test_compaction_sends_nothing(store, asked):
    put(store, [f"/{n}" for n in range(30)], unit_vectors(30))
    store.delete(exactly(f"/{n}" for n in range(0, 30, 2)))
    before = check_equals_exact(store)
    asked.clear()
    assert compact(store) == 15 and asked == [] and not store._pending()
    assert check_equals_exact(store) == before


def test_the_catalogue_may_change_without_milvus(address, tmp_path, clip):
    """Opened as a folder, it notes for Milvus what it changes."""
    images = [save_image(tmp_path / f"{n}.png", n) for n in range(4)]
    catalogue = tmp_path / "catalogue"
    with cg.ImageIndex.open(address, clip, catalogue=catalogue) as index:
        index.add(images[:3])
    with cg.ImageIndex.open(catalogue, clip) as folder:
        folder.add(images[3])
        folder.delete(images[0])
        expected = [hit.path for hit in folder.search("apple")]
    with cg.ImageIndex.open(address, clip, catalogue=catalogue) as index:
        assert [hit.path for hit in index.search("apple")] == expected
        assert index._store._size() == 3


def test_the_index_is_used_as_a_folder_is(address, tmp_path, clip, other_clip, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    images = [save_image(tmp_path / "images" / f"{n}.png", n) for n in range(5)]
    with (
        cg.ImageIndex.open(address, clip) as index,
        cg.ImageIndex.open(tmp_path / "folder", clip) as folder,
    ):
        for each in (index, folder):
            each.add(images, metadata=lambda path: {"n": int(path.stem)}, batch_size=2)
            each.delete(images[4])
        for query, where in (("apple", None), (f"2 * apple - {images[0]}", "n > 0"), (images[1], {"n": [1, 2, 3]})):
            found, expected = index.search(query, 3, where), folder.search(query, 3, where)
            assert [(hit.path, hit.metadata) for hit in found] == [(hit.path, hit.metadata) for hit in expected]
            assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    place = Path(f"{address}.catalogue") if address.endswith(".db") else tmp_path / "data"
    assert len(list(place.rglob("index.sqlite"))) == 1
    with pytest.raises(ImageIndexError, match="their vectors cannot be compared"):
        cg.ImageIndex.open(address, other_clip)
    with cg.ImageIndex.open(address, create=False) as again:
        assert len(again) == 4


# Failures


def test_a_server_that_is_not_there_is_named(tmp_path):
    port = free_port()
    with pytest.raises(ImageIndexError, match=rf"http://127\.0\.0\.1:{port}: Milvus cannot be reached: ") as failure:
        make(f"http://someone:secret@127.0.0.1:{port}", tmp_path)
    assert "secret" not in str(failure.value)


@pytest.mark.slow
def test_a_server_that_dies_loses_nothing(tmp_path):
    port = free_port()
    process = start_server(tmp_path / "server", port)
    store = make(f"http://127.0.0.1:{port}", tmp_path, timeout=5)
    put(store, list("ab"), unit_vectors(2))
    process.kill()
    process.wait()
    store._client._handler._timeout = 1
    with pytest.raises(
        ImageIndexError, match=r"Milvus says: .*; what was done is kept in the catalogue, and sent when"
    ):
        put(store, ["c"], unit_vectors(1, seed=1))
    assert sorted(check_equals_exact(store)) == list("abc")
    store.close()
    process = start_server(tmp_path / "server", port)
    try:
        again = make(f"http://127.0.0.1:{port}", tmp_path)
        assert again._size() == 3 and not again._pending() and sorted(check_equals_exact(again)) == list("abc")
        again.close()
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_a_file_serves_one_process(tmp_path):
    """And is let go when its last store is closed."""
    address = str(tmp_path / "x.db")
    code = f"""
import sys
from pathlib import Path
from clip_guidance.index import ImageIndexError
from clip_guidance.index.milvus import MilvusStore
try:
    MilvusStore(Path({str(tmp_path / "catalogue")!r}), None, {address!r}).close()
    print("opened")
except ImageIndexError as error:
    print(error)
"""

    def elsewhere() -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout

    first, second = make(address, tmp_path), make(address, tmp_path)
    first.close()
    assert "x.db: Milvus cannot be reached" in (said := elsewhere()) and "`milvus-lite server` serves several" in said
    second.close()
    assert elsewhere() == "opened\n"


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    home = tmp_path / "clip_guidance" / "indices"
    assert opening._default_catalogue("http://user:secret@host:19530") == home / "host-19530"
    assert opening._default_catalogue("https://host/database") == home / "host-database"
    assert opening._default_catalogue("/a/x.db") == Path("/a/x.db.catalogue")
    with pytest.raises(ValueError, match="catalogue: goes with Milvus; the folder photos is its own"):
        cg.ImageIndex.open("photos", catalogue="c")


def test_without_pymilvus_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ImageIndexError, match=r"x\.db: Milvus needs pymilvus: pip install 'clip-guidance\[index\]'"):
        make(str(tmp_path / "x.db"), tmp_path)
    assert not os.path.exists(tmp_path / "x.db")


# Secrets


@pytest.mark.parametrize(
    "address",
    [
        "http://:s3cret@127.0.0.1:1",
        "http://root:s3cret@127.0.0.1:1/db",
        "http://root:s3cret@127.0.0.1:x",
        "http://root:s3/cret@127.0.0.1:1",
        "http://root:s3%40cret@[::1:1",
    ],
)
def test_errors_show_no_password(address, tmp_path, capfd, caplog):
    with pytest.raises(ImageIndexError, match=r"^http://(127\.0\.0\.1|\[::1):\w+(/db)?: ") as caught:
        make(address, tmp_path)
    shown = "".join(traceback.format_exception(caught.value)).replace(address, "")
    assert not re.search("s3|cret", shown + "".join(capfd.readouterr()) + caplog.text)
    assert len(str(caught.value)) <= 300


@pytest.mark.slow
def test_reports_show_no_password(milvus_server, tmp_path, clip, capsys, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    address = milvus_server.replace("://", "://root:s3cret@")
    image = save_image(tmp_path / "a.png", 1)
    with cg.ImageIndex.open(address, clip) as index:
        index.add(image)
    for words in (["search", "apple"], ["similar", "--duplicates", "0.9"], ["index", str(image)]):
        report = [] if words[0] == "index" else ["--report", str(tmp_path / f"{words[0]}.html")]
        with pytest.raises(SystemExit) as ended:
            run([*words, "--index", address, "--json", *report])
        assert ended.value.code in (0, None)
    shown = [*capsys.readouterr(), *(path.read_text() for path in tmp_path.glob("*.html"))]
    assert len(shown) == 4 and not any("s3cret" in text for text in shown) and milvus_server in shown[-1]
