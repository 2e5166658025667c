"""The list of work: folders, tables and lines become items, lazily and in order."""

import itertools
import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.corpus import number

from clip_guidance.data import Policy, open_pairs
from clip_guidance.data.sources.text_table import COLUMN_SEARCH_ROWS
from clip_guidance.images.load import find_images
from clip_guidance.metrics.job import items as work
from clip_guidance.metrics.job.items import ScoreItem, check_table, read_items

ABC = ("a.png", "b.png", "c.png")
of_record = work._of_record


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "tree"
    for name in ("b/2.png", "b/10.png", "a.png", "b.png", "b-c/x.jpg", ".hidden/y.png", "b/.z.png", "notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_a_folder_is_walked_in_the_order_of_find_images(tree):
    items = list(read_items([tree], "a cat"))
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
    names = [Path(item.name).name for item in read_items([tmp_path], "a cat")]
    assert names == ["closed", "gone.png", "loop.png", "pipe.png"]


def test_nothing_is_read_before_it_is_asked_for(tmp_path):
    def endless():
        yield from (f"{number}.png" for number in itertools.count())

    assert [item.name for item in itertools.islice(read_items(["-"], None, endless()), 3)] == [
        "0.png",
        "1.png",
        "2.png",
    ]


def test_lines_are_paths_or_objects(tmp_path):
    lines = ["a.png\n", "\n", '{"image": "b.png", "prompt": "a dog"}', '{"image": 3}', "{oops"]
    a, b, number, broken = read_items(["-"], "a cat", lines)
    assert (a.source, a.prompt) == ("a.png", "a cat") and (b.source, b.prompt) == ("b.png", "a dog")
    assert number.problem == "has no image" and "no JSON" in broken.problem


def test_what_is_not_there_stays_and_fails_by_name(tmp_path):
    gone, empty = tmp_path / "gone.png", tmp_path / "empty"
    empty.mkdir()
    assert [item.name for item in read_items([gone, empty])] == [str(gone), str(empty)]


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
    items = list(read_items([table]))
    assert items == [
        ScoreItem(*[str(tmp_path / row["image"])] * 2, row["prompt"], position=i, row=f"{table}: row {i + 1}")
        for i, row in enumerate(rows)
    ]


def test_images_inside_a_parquet_table(tmp_path):
    table = tmp_path / "inside.parquet"
    pq.write_table(pa.Table.from_pylist([{"image": b"bytes", "prompt": "a cat"}]), table)
    (item,) = read_items([table])
    assert item == ScoreItem(f"{table}: row 1", b"bytes", "a cat", row=f"{table}: row 1")


BAD_LINES = [  # of a table of image and prompt, and what is wrong with each
    ("csv", ",x", "has no image"),
    ("csv", "a.png", "1 fields, the header has 2"),
    ("csv", "a.png,x,y", "3 fields, the header has 2"),
    ("tsv", "\tx", "has no image"),
    ("jsonl", '{"prompt": "x"}', "has no image"),
    ("jsonl", '{"image": 7, "prompt": "x"}', "expected a path or bytes, got int"),
    ("jsonl", '{"image": "a.png", "prompt": 7}', "prompt: expected a text, got int 7"),
    ("jsonl", "[1]", "expected an object, got list"),
    ("jsonl", "not json", "not JSON: Expecting value: line 1 column 1 (char 0)"),
]
GOOD_LINES = {"csv": "b.png,a cat", "tsv": "b.png\ta cat", "jsonl": '{"image": "b.png", "prompt": "a cat"}'}


def text_table(folder, suffix, *lines):
    header = {"csv": ["image,prompt"], "tsv": ["image\tprompt"]}.get(suffix, [])
    table = folder / f"pairs.{suffix}"
    table.write_text("\n".join([*header, *lines]) + "\n")
    return table


@pytest.mark.parametrize(("suffix", "line", "problem"), BAD_LINES)
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_row_fails_by_name_and_costs_no_other(tmp_path, suffix, line, problem, first):
    lines = [line, GOOD_LINES[suffix]] if first else [GOOD_LINES[suffix], line]
    table = text_table(tmp_path, suffix, *lines)
    check_table(table)
    items = list(read_items([table]))
    bad, good = items if first else reversed(items)
    assert (bad.name, bad.source, bad.problem) == (f"{table}: row {1 if first else 2}", None, problem)
    assert (good.name, good.prompt, good.problem) == (str(tmp_path / "b.png"), "a cat", None)


@pytest.mark.parametrize(("suffix", "line", "problem"), BAD_LINES)
def test_a_table_of_bad_rows_alone_is_refused(tmp_path, suffix, line, problem):
    table = text_table(tmp_path, suffix, *([line] * 3))
    if suffix == "jsonl" and not line.startswith('{"i'):  # no column of images either, or none at all
        problem = "no column of images found" if line.startswith("{") else "found none"
        with pytest.raises(ValueError, match=rf"^{re.escape(str(table))}: .*{problem}"):
            check_table(table)
        return
    with pytest.raises(
        ValueError, match=re.escape(f"{table}: each of its 3 rows is bad; the first is row 1: {problem}")
    ):
        check_table(table)


def test_of_a_parquet_table_too_one_row_must_give_an_image(tmp_path):
    table = tmp_path / "pairs.parquet"
    rows = [{"image": None, "prompt": "x"}] * 3
    pq.write_table(pa.table({"image": pa.array([None] * 3, pa.string()), "prompt": ["x"] * 3}), table, row_group_size=1)
    with pytest.raises(ValueError, match=r"pairs.parquet: each of its 3 rows is bad; the first is row 1: has no image"):
        check_table(table)
    pq.write_table(pa.Table.from_pylist([*rows, {"image": "a.png", "prompt": "x"}]), table, row_group_size=1)
    check_table(table)
    assert [item.problem for item in read_items([table])] == ["has no image"] * 3 + [None]


def test_the_check_stops_at_the_first_good_row(tmp_path, monkeypatch):
    table, read = text_table(tmp_path, "csv", ",x", *["b.png,a cat"] * 50), []
    monkeypatch.setattr(work, "_of_record", lambda record, path: read.append(record.key) or of_record(record, path))
    check_table(table)
    assert read == ["row 1", "row 2"]


def test_a_table_without_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"pairs.csv: has no row"):
        check_table(text_table(tmp_path, "csv"))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_needs_no_column_of_prompts(tmp_path, suffix):
    table = tmp_path / f"images.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({"image": ["a.png", "b.png"], "size": [1, 2]}), table)
    elif suffix == "jsonl":
        table.write_text('{"image": "a.png", "size": 1}\n{"image": "b.png", "size": 2}\n')
    else:
        comma = "," if suffix == "csv" else "\t"
        table.write_text(f"image{comma}size\na.png{comma}1\nb.png{comma}2\n")
    check_table(table)  # a warning would fail here
    for prompt in (None, "a cat"):
        items = list(read_items([table], prompt))
        assert [(item.name, item.prompt) for item in items] == [(str(tmp_path / name), prompt) for name in ABC[:2]]
        assert [item.row for item in items] == [f"{table}: row 1", f"{table}: row 2"]


def test_the_prompt_for_all_is_that_of_rows_without_one(tmp_path):
    table = text_table(tmp_path, "csv", "a.png,", "b.png,a dog", "c.png,  ")
    assert [item.prompt for item in read_items([table], "a cat")] == ["a cat", "a dog", "a cat"]
    assert [item.prompt for item in read_items([table])] == [None, "a dog", None]


def test_a_line_may_have_a_prompt_that_those_before_have_not(tmp_path):
    lines = ['{"image": "a.png"}'] * (COLUMN_SEARCH_ROWS + 1) + ['{"image": "b.png", "prompt": "a dog"}']
    *others, last = read_items([text_table(tmp_path, "jsonl", *lines)], "a cat")
    assert last.prompt == "a dog" and {item.prompt for item in others} == {"a cat"}


def test_only_the_text_of_a_minus_is_standard_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ("./-", Path("-")):
        assert [item.source for item in read_items([given], "a cat", ["a.png"])] == ["-"]
    assert [item.source for item in read_items(["-"], "a cat", ["a.png"])] == ["a.png"]
    (tmp_path / "-").mkdir()
    (tmp_path / "-" / "b.png").write_bytes(b"")
    assert [item.source for item in read_items(["./-"], "a cat")] == ["-/b.png"]


def test_a_byte_order_mark_is_no_part_of_a_name():
    lines = ["\ufeffa.png\r\n", '\ufeff{"image": "b.png"}\r\n']
    assert [item.name for item in read_items(["-"], "a cat", lines)] == ["a.png", "b.png"]


def test_a_file_that_is_no_table_is_called_so(tmp_path):
    table = tmp_path / "pairs.parquet"
    table.write_bytes(b"nonsense")
    (item,) = read_items([table])
    assert item.name == str(table) and item.problem.startswith("cannot be read as a table (Parquet magic bytes")
    with pytest.raises(ValueError, match=r"gone.csv: cannot be read as a table \(\[Errno 2\] No such file"):
        check_table(tmp_path / "gone.csv")


def test_a_column_of_another_name_is_told(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("image,label\na.png,a cat\n")
    with pytest.warns(UserWarning, match=r"pairs.csv: has no column prompt; images are compared with: label"):
        (item,) = read_items([table])
    assert item.prompt == "a cat"
    table.write_text("image,label,prompt\na.png,a cat,a dog\n")  # a warning would fail here
    assert [item.prompt for item in read_items([table])] == ["a dog"]


# One reader for scoring, checking and training


def captioned(folder):
    """Three images: two with a text of their name, one without."""
    for i in range(3):
        (folder / f"{i}.PNG").write_bytes(number(i))
    (folder / "0.txt").write_text("a cat\na red cat\n")
    (folder / "1.CAPTION").write_text("a dog")


def as_training(folder):
    pairs = open_pairs(folder, policy=Policy(max_bad_share=1))
    return sorted((pair.key, text) for pair in pairs for text in pair.captions)


def as_scoring(folder, prompt=None):
    return sorted((os.path.relpath(item.name, folder), item.prompt) for item in read_items([folder], prompt))


def test_the_texts_beside_images_are_prompts(tmp_path):
    captioned(tmp_path)
    with pytest.warns(UserWarning, match="images are compared with the texts beside them, where they have one"):
        found = as_scoring(tmp_path, "a fish")
    assert found == sorted([*as_training(tmp_path), ("2.PNG", "a fish")])


def test_a_table_in_a_folder_says_the_prompts_and_leaves_no_image_out(tmp_path):
    (tmp_path / "Images").mkdir()
    captioned(tmp_path / "Images")
    (tmp_path / "captions.txt").write_text("image,caption\n0.PNG,of the table\ngone.png,lost\n")
    with pytest.warns(UserWarning):
        found = as_scoring(tmp_path)
    rest = [("Images/1.PNG", "a dog"), ("Images/2.PNG", None)]
    assert found == [("Images/0.PNG", "of the table"), *rest, ("Images/gone.png", "lost")]


def test_names_of_folders_are_no_prompts(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(number(1))
    (tmp_path / "notes.txt").write_text("mine")
    assert as_scoring(tmp_path, "a dog") == [("cat/1.png", "a dog")]


def test_a_text_that_cannot_be_read_costs_its_image_alone(tmp_path):
    captioned(tmp_path)
    (tmp_path / "1.CAPTION").write_bytes(b"caf\xe9")
    with pytest.warns(UserWarning):
        problems = {Path(item.name).name: item.problem for item in read_items([tmp_path], "x") if item.problem}
    assert problems == {"1.PNG": "prompt: not UTF-8 (byte 3); save the text as UTF-8"}


@pytest.mark.parametrize(
    "header", ["filepath, title", '"filepath" , "title"', "filepath; prompt", "\ufefffilepath,caption"]
)
def test_a_header_with_spaces_keeps_its_prompts(tmp_path, header, recwarn):
    table = tmp_path / "pairs.csv"
    table.write_text(f"{header}\na.png{';' if ';' in header else ','} a red apple\n")
    check_table(table)
    (item,) = read_items([table])
    assert (item.name, item.prompt) == (str(tmp_path / "a.png"), "a red apple")


@pytest.mark.parametrize("mark", ["", "\ufeff", "sep=;\r\n"])
def test_standard_input_may_be_a_csv(mark, recwarn):
    lines = [f"{mark}image;caption\r\n", 'a.png;"red; round"\r\n', "b.png;x;y\r\n", "c.png;\r\n"]
    a, b, c = read_items(["-"], "a cat", "".join(lines).splitlines(keepends=True))
    assert (a.source, a.prompt, a.row) == ("a.png", "red; round", "standard input: row 1")
    assert b.problem == "3 fields, the header has 2" and (c.source, c.prompt) == ("c.png", "a cat")


def test_a_line_of_json_that_is_nested_deeply_is_a_bad_line():
    (item,) = read_items(["-"], None, ['{"image": ' + "[" * 100_000])
    assert item.problem.startswith("is no path and no JSON (")
