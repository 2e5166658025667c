"""The list of work: folders, tables and lines become items, lazily and in order."""

import itertools
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_guidance.images import find_images
from clip_guidance.scoring.work import Item, check_table, read_work


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "tree"
    for name in ("b/2.png", "b/10.png", "a.png", "b.png", "b-c/x.jpg", ".hidden/y.png", "b/.z.png", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_a_folder_is_walked_in_the_order_of_find_images(tree):
    items = list(read_work([tree], "a cat"))
    assert {item.name for item in items} == {str(path) for path in find_images([tree])}
    assert len(items) == 5 and [item.position for item in items] == list(range(5))
    assert {item.prompt for item in items} == {"a cat"}


def test_what_cannot_be_read_is_an_item_that_fails_by_name(tmp_path, monkeypatch):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def denied(folder):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", denied)  # root may look anywhere
    names = [Path(item.name).name for item in read_work([tmp_path], "a cat")]
    assert names == ["closed", "gone.png", "loop.png", "pipe.png"]


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    def endless():
        yield from (f"{number}.png" for number in itertools.count())

    assert [item.name for item in itertools.islice(read_work(["-"], None, endless()), 3)] == [
        "0.png",
        "1.png",
        "2.png",
    ]


def test_lines_are_paths_or_objects(tmp_path):
    lines = ["a.png\n", "\n", '{"image": "b.png", "prompt": "a dog"}', '{"image": 3}', "{oops"]
    a, b, number, broken = read_work(["-"], "a cat", lines)
    assert (a.source, a.prompt) == ("a.png", "a cat") and (b.source, b.prompt) == ("b.png", "a dog")
    assert number.problem == "has no image" and "no JSON" in broken.problem


def test_what_is_not_there_stays_and_fails_by_name(tmp_path):
    gone, empty = tmp_path / "gone.png", tmp_path / "empty"
    empty.mkdir()
    assert [item.name for item in read_work([gone, empty])] == [str(gone), str(empty)]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_gives_a_pair_a_row(tmp_path, suffix):
    rows = [{"image": "a.png", "prompt": "a cat"}, {"image": "deep/b.png", "prompt": "red, round"}]
    table = tmp_path / f"pairs.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), table, row_group_size=1)
    elif suffix == "jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        comma = "," if suffix == "csv" else "\t"
        quoted = [comma.join(f'"{value}"' for value in row.values()) for row in rows]
        table.write_text("\n".join([comma.join(rows[0]), *quoted]))
    check_table(table)
    items = list(read_work([table]))
    assert items == [
        Item(str(tmp_path / row["image"]), str(tmp_path / row["image"]), row["prompt"], position=i)
        for i, row in enumerate(rows)
    ]


def test_pictures_inside_a_parquet_table(tmp_path):
    table = tmp_path / "inside.parquet"
    pq.write_table(pa.Table.from_pylist([{"image": b"bytes", "prompt": "a cat"}]), table)
    (item,) = read_work([table])
    assert item == Item(f"{table}: row 1", b"bytes", "a cat")


@pytest.mark.parametrize("row", ['{"image": "a.png"}', "not json", "[1]", '{"image": "a.png", "prompt": 7}'])
def test_a_bad_row_is_told_before_anything_is_computed(tmp_path, row):
    table = tmp_path / "pairs.jsonl"
    table.write_text('{"image": "a.png", "prompt": "x"}\n' + row + "\n")
    with pytest.raises(ValueError, match=r"pairs.jsonl: row 2 has no image or no prompt \("):
        check_table(table)


def test_a_byte_order_mark_is_no_part_of_a_name():
    lines = ["\ufeffa.png\r\n", '\ufeff{"image": "b.png"}\r\n']
    assert [item.name for item in read_work(["-"], "a cat", lines)] == ["a.png", "b.png"]


def test_a_file_that_is_no_table_is_called_so(tmp_path):
    table = tmp_path / "pairs.parquet"
    table.write_bytes(b"nonsense")
    (item,) = read_work([table])
    assert item.name == str(table) and item.problem.startswith("cannot be read as a table (Parquet magic bytes")
    with pytest.raises(ValueError, match=r"gone.csv: cannot be read as a table \(\[Errno 2\] No such file"):
        check_table(tmp_path / "gone.csv")


def test_a_column_of_another_name_is_told(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("image,label\na.png,a cat\n")
    with pytest.warns(UserWarning, match=r"pairs.csv: has no column prompt; pictures are compared with: label"):
        (item,) = read_work([table])
    assert item.prompt == "a cat"
    table.write_text("image,label,prompt\na.png,a cat,a dog\n")  # a warning would fail here
    assert [item.prompt for item in read_work([table])] == ["a dog"]
