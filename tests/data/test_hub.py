"""Data sets of the `datasets` library, from local files: no test goes to the network."""

import gc
import sys

import pytest
from helpers.corpus import encode, noise, number, read_number, write_members, write_parquet

from clip_guidance.data import Policy, SourceError, open_pairs
from clip_guidance.data.open import find_source
from clip_guidance.data.pairs import Pairs
from clip_guidance.data.sources.hub import HubSource

datasets = pytest.importorskip("datasets")
ANY = Policy(max_bad_share=1)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    datasets.disable_progress_bars()


@pytest.fixture
def folder(tmp_path):
    """Four parquet files of three rows, one of which is broken."""
    for i in range(4):
        (tmp_path / f"{i}").mkdir()
        rows = [(str(j), b"" if j == 4 else number(j), [f"caption {j}", "second"]) for j in range(3 * i, 3 * i + 3)]
        write_parquet(tmp_path / f"{i}", rows).rename(tmp_path / f"train-{i}.parquet")
        (tmp_path / f"{i}").rmdir()
    return tmp_path


@pytest.mark.parametrize("streaming", [True, False])
def test_a_broken_image_does_not_end_the_stream(folder, streaming):
    pairs = Pairs(HubSource(str(folder), streaming=streaming), policy=ANY)
    assert [read_number(pair.image) for pair in pairs] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert pairs.counters.bad == {"empty": 1}


def test_streamed_files_are_parts_that_processes_share(folder):
    shares = []
    for index in range(2):
        source = HubSource(str(folder))
        assert len(source.parts) == 4
        pairs = Pairs(source, shard=(index, 2), policy=ANY, shuffle_buffer=3)
        shares.append([read_number(pair.image) for pair in pairs])
    assert sorted(row for share in shares for row in share) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert [len(share) for share in shares] in ([6, 5], [5, 6])


@pytest.mark.parametrize("streaming", [True, False])
def test_resume_in_the_middle_of_a_stream(folder, streaming):
    def reader():
        return Pairs(HubSource(str(folder), streaming=streaming), policy=ANY, shuffle_buffer=5, seed=2)

    undisturbed = [read_number(pair.image) for pair in reader()]
    for position in (1, 4, 7):
        first, second = reader(), reader()
        stream = iter(first)
        done = [read_number(next(stream).image) for _ in range(position)]
        second.load_state_dict(first.state_dict())
        assert done + [read_number(pair.image) for pair in second] == undisturbed


def saved(tmp_path):
    features = datasets.Features({"photo": datasets.Image(), "text": datasets.Value("string")})
    rows = {"photo": [{"bytes": number(i), "path": None} for i in range(3)], "text": ["a", None, "c"]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_a_saved_data_set_is_recognised_and_its_image_column_found_by_type(tmp_path):
    saved(tmp_path).save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved(tmp_path), "test": saved(tmp_path)}).save_to_disk(str(tmp_path / "two"))
    for path, options in ((tmp_path / "one", {}), (tmp_path / "two", {}), (tmp_path / "two", {"split": "test"})):
        pairs = open_pairs(path, policy=ANY, **options)
        assert [pair.captions for pair in pairs] == [("a",), ("c",)] and pairs.counters.bad == {"no_caption": 1}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # datasets leaves the table open
def test_an_image_folder_streams_by_path(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(encode(noise()))
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,first\nb.png,second\n")
    pairs = Pairs(HubSource(str(tmp_path)), policy=ANY)
    assert sorted(pair.captions[0] for pair in pairs) == ["first", "second"]
    del pairs
    gc.collect()


def test_tars_of_a_data_set_keep_their_keys(tmp_path):
    write_members(tmp_path / "0.tar", [("k1.jpg", number(1)), ("k1.txt", b"one"), ("k2.jpg", b""), ("k2.txt", b"two")])
    pairs = Pairs(HubSource(str(tmp_path)), policy=ANY)
    assert [(pair.key, pair.captions) for pair in pairs] == [("k1", ("one",))] and pairs.counters.bad == {"empty": 1}


def test_a_stream_that_fails_for_good_is_a_bad_row(folder):
    source = HubSource(str(folder))

    def failing(index):
        yield from source.rows.shard(4, index).take(1)
        raise ConnectionError("the Hub is away")

    source._rows = failing
    pairs = Pairs(source, policy=ANY)
    assert [read_number(pair.image) for pair in pairs] == [0, 3, 6, 9] and pairs.counters.bad == {"broken_file": 4}
    assert pairs.counters.examples["broken_file"][0]["detail"] == "after row 1: the Hub is away"


def test_a_name_on_the_hub_is_opened_there(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return saved(None).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    pairs = open_pairs("someone/images:small", split="test", policy=ANY)
    assert [pair.captions for pair in pairs] == [("a",), ("c",)]
    assert asked == [(("someone/images", "small"), {"split": "test", "streaming": True})]


def test_no_such_data_set(monkeypatch):
    def load_dataset(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'photos/cats' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(SourceError, match="photos/cats: cannot be opened as a data set: .* doesn't exist on the Hub"):
        open_pairs("photos/cats")


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        SourceError, match=r"a/b: no table, .* on the Hub, .* needs pip install 'clip-guidance\[data\]'"
    ):
        find_source("a/b", {}, {})


def test_missing_columns_are_named(folder):
    with pytest.raises(SourceError, match=r"\[train\]: no column alt; it has 'image', 'captions'"):
        HubSource(str(folder), caption_columns=["alt"])


@pytest.mark.parametrize("streaming", [True, False])
def test_numbers_of_classes_are_their_names(tmp_path, streaming):
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=["cat", "red_fox"])}
    )
    rows = {"image": [{"bytes": number(i), "path": None} for i in range(2)], "label": [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    pairs = Pairs(HubSource(str(tmp_path), streaming=streaming))
    assert [pair.captions for pair in pairs] == [("red fox",), ("cat",)]
