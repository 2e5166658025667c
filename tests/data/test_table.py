"""CSV, TSV, JSONL and parquet: which columns, which rows are bad, and how much is read."""

import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.corpus import number, read_number, write_parquet

from clip_guidance.data import Policy, SourceError, open_pairs
from clip_guidance.data.sources import table
from clip_guidance.data.sources.columns import Columns

ANY = Policy(max_bad_share=1)


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(number(i))
    return tmp_path


def write(path, text, encoding="utf-8"):
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def read(path, **options):
    pairs = open_pairs(path, policy=ANY, **options)
    return {read_number(pair.image): pair.captions for pair in pairs}, pairs.counters


def test_quotes_commas_and_line_breaks_in_a_caption(folder):
    text = 'image,caption\r\n0.png,"red, ""very"" red\nand round"\r\n"1.png",plain\r\n'
    assert read(write(folder / "a.csv", text))[0] == {0: ('red, "very" red\nand round',), 1: ("plain",)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiter_and_byte_order_mark_are_found(folder, encoding, delimiter):
    text = "\n".join(delimiter.join(line) for line in [("image", "caption"), ("0.png", "ein Apfel: grün")])
    assert read(write(folder / "a.csv", text, encoding))[0] == {0: ("ein Apfel: grün",)}


def test_several_columns_in_the_order_of_their_numbers(folder):
    text = "caption_10,caption_2,filename,caption_1\nten,two,0.png,one\n,two,1.png,\n"
    assert read(write(folder / "a.csv", text))[0] == {0: ("one", "two", "ten"), 1: ("two",)}


def test_columns_may_be_named(folder):
    path = write(folder / "a.csv", "text,foto,titulo,alt\nno,0.png,uno,zero\n")
    named = {"image_column": "foto", "caption_columns": ["titulo", "alt"]}
    assert read(path, **named)[0] == {0: ("uno", "zero")}
    with pytest.raises(SourceError, match=r"a.csv: no column bild; it has 'text', 'foto', 'titulo', 'alt'"):
        open_pairs(path, image_column="bild")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["url", "caption"],
            "no column of images found; it has 'url', 'caption'; name it, or rename it to one of image",
        ),
        (
            ["image", "class"],
            "no column of captions found; it has 'image', 'class'; name it, or rename it to one of capt",
        ),
        ([], "no column of images found; it has none"),
    ],
)
def test_missing_columns_name_those_there_are(names, message):
    with pytest.raises(SourceError, match=f"here: {message}"):
        Columns.find(names, "here")


def test_captions_may_be_dispensed_with():
    assert Columns.find(["image", "class"], "here", need_captions=False) == Columns("image", ())
    asked = Columns.find(["image", "class"], "here", captions=["prompt"], need_captions=False)
    assert asked == Columns("image", ("prompt",))  # of the rows that have it
    assert Columns.find(["image", "text"], "here", need_captions=False) == Columns("image", ("text",))
    with pytest.raises(SourceError, match="here: no column of images found; it has 'class'"):
        Columns.find(["class"], "here", need_captions=False)


def test_a_bad_first_line_of_a_jsonl_does_not_name_the_columns(folder):
    rows = ['{"alt": "x"}', '{"caption": "y"}', '{"image": "0.png", "caption": "zero"}']
    found, counters = read(write(folder / "a.jsonl", "\n".join(rows)))
    assert found == {0: ("zero",)} and counters.bad == {"no_image": 1, "no_caption": 1}


def test_bad_lines_of_a_csv_cost_their_row_alone(folder):
    lines = [b"image,caption", b"0.png,zero", b"1.png", b"1.png,one,more", b"", b"caf\xe9.png,gone", b"2.png,caf\xe9"]
    lines += [b",no image", b"3.png,", b"http://example.org/a.png,remote", b"3.png,three"]
    found, counters = read(write(folder / "a.csv", b"\n".join(lines)))
    assert found == {0: ("zero",), 3: ("three",)}
    expected = {"malformed_row": 2, "missing": 2, "caption_not_text": 1, "no_image": 1, "no_caption": 1}
    assert counters.bad == expected
    details = [line["detail"] for line in counters.examples["malformed_row"]]
    assert details == ["1 fields, the header has 2", "3 fields, the header has 2"]
    assert "is an address; download the images first" in counters.examples["missing"][1]["detail"]


def test_a_quote_that_is_never_closed_ends_in_a_bad_row(folder):
    text = 'image,caption\n0.png,zero\n1.png,"open\n' + "x\n" * 70_000 + "2.png,two\n"
    found, counters = read(write(folder / "a.csv", text))
    assert found[0] == ("zero",) and found[2] == ("two",)
    assert "field larger than field limit" in counters.examples["malformed_row"][0]["detail"]


def test_bad_lines_of_a_jsonl_cost_their_row_alone(folder):
    rows = ['{"image": "0.png", "caption": "zero"}', "{broken", "[1]", "", '{"image": 7, "caption": "x"}']
    rows += ['{"image": "1.png", "caption": 7}', '{"image": "1.png"}', '{"caption": "x"}', "[" * 100_000]
    rows += ['{"image": "1.png", "caption": ["one", "eins"]}']
    found, counters = read(write(folder / "a.jsonl", "\n".join(rows)))
    assert found == {0: ("zero",), 1: ("one", "eins")}
    assert counters.bad == {"malformed_row": 3, "no_image": 2, "caption_not_text": 1, "no_caption": 1}
    details = [line["detail"] for line in counters.examples["malformed_row"]]
    assert "expected an object, got list" in details and details[0].startswith("not JSON: ")
    assert [line["key"] for line in counters.examples["malformed_row"]] == ["row 2", "row 3", "row 8"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_a_file_of_zero_bytes_is_a_broken_file(tmp_path, name):
    pairs = open_pairs(write(tmp_path / name, b""), policy=ANY)
    with pytest.raises(ValueError, match=f"none of 1 rows gives a pair: 1 broken_file; the first is {name}"):
        list(pairs)


def test_a_table_without_rows_says_so(tmp_path):
    with pytest.raises(ValueError, match="a.csv: there is no row to read"):
        list(open_pairs(write(tmp_path / "a.csv", "image,caption\n")))


def test_one_broken_table_does_not_stop_the_others(folder):
    write_parquet(folder, [("0", number(0), ["zero"])])
    write(folder / "zzz.parquet", (folder / "rows.parquet").read_bytes()[:-20])
    found, counters = read(f"{folder}/*.parquet")
    assert found == {0: ("zero",)} and counters.bad == {"broken_file": 1}
    assert "zzz.parquet" in counters.examples["broken_file"][0]["detail"]


def test_a_row_group_that_breaks_off_keeps_the_others(tmp_path):
    path = write_parquet(tmp_path, [(str(i), number(i), [f"caption {i}"]) for i in range(9)], row_group_size=3)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    found, counters = read(path)
    assert list(found) == [0, 1, 2, 6, 7, 8]
    assert counters.bad == {"broken_file": 3} and counters.rows == 9  # as many as the file's metadata promises
    assert [line["key"] for line in counters.examples["broken_file"]] == ["row 4", "row 5", "row 6"]


def test_a_row_group_that_breaks_off_in_its_middle_loses_the_rest_of_it(tmp_path, monkeypatch):
    """What was read before stays, and another place in the file is another place for a resumed reader too."""
    monkeypatch.setattr(table, "BATCH_ROWS", 2)
    path = write_parquet(tmp_path, [(str(i), number(i), [f"caption {i}"]) for i in range(12)], row_group_size=6)
    read_batches = pq.ParquetFile.iter_batches

    def breaking(self, *args, row_groups, **kwargs):
        for place, batch in enumerate(read_batches(self, *args, row_groups=row_groups, **kwargs)):
            if row_groups == [0] and place == 1:
                raise OSError("page 2 is garbled")
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", breaking)
    found, counters = read(path)
    assert list(found) == [0, 1, *range(6, 12)] and counters.bad == {"broken_file": 4} and counters.rows == 12
    assert counters.bad_share == pytest.approx(4 / 12)
    assert "page 2 is garbled" in counters.examples["broken_file"][0]["detail"]
    resumed = open_pairs(path, policy=ANY)
    resumed.row = 4  # two read, two lost
    assert [read_number(pair.image) for pair in resumed] == list(range(6, 12))


def test_parquet_is_read_by_batches_of_a_row_group(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "BATCH_ROWS", 2)
    path = write_parquet(tmp_path, [(str(i), number(i), ["a"]) for i in range(10)], row_group_size=5)
    read_batches, taken = pq.ParquetFile.iter_batches, []

    def counted(self, *args, **kwargs):
        for batch in read_batches(self, *args, **kwargs):
            taken.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    stream = iter(open_pairs(path))
    for done in range(1, 11):
        next(stream)
        assert done <= sum(taken) <= done + 1
    assert taken == [2, 2, 1, 2, 2, 1]


def test_parquet_rows_are_numbered_through_and_paths_start_at_the_table(folder):
    rows = {"image": ["0.png", "1.png", "none.png", "3.png"], "text": ["a", "b", "c", "d"]}
    pq.write_table(pa.table(rows), folder / "a.parquet", row_group_size=3)
    pairs = open_pairs(folder / "a.parquet", policy=ANY)
    assert [(pair.key, pair.captions) for pair in pairs] == [("row 1", ("a",)), ("row 2", ("b",)), ("row 4", ("d",))]
    assert pairs.counters.bad == {"missing": 1}


@pytest.mark.parametrize("column", [pa.array([1, 2]), pa.array([[1.5], [2.5]])])
def test_numbers_are_no_captions(tmp_path, column):
    pq.write_table(pa.table({"image": [number(0), number(1)], "text": column}), tmp_path / "a.parquet")
    pairs = open_pairs(tmp_path / "a.parquet", policy=ANY)
    with pytest.raises(ValueError, match="2 caption_not_text"):
        list(pairs)


def test_an_absent_pyarrow_names_the_extra(tmp_path, monkeypatch):
    path = write_parquet(tmp_path, [("0", number(0), ["zero"])])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SourceError, match=r"parquet needs pyarrow: pip install 'clip-guidance\[data\]'"):
        open_pairs(path)


def test_objects_as_captions(folder):
    sentences = [{"raw": "one", "tokens": ["o"]}, {"raw": "two"}]
    path = write(folder / "a.jsonl", json.dumps({"filename": "0.png", "sentences": sentences}))
    assert read(path)[0] == {0: ("one", "two")}


@pytest.mark.parametrize("label", [0, 1, 2, -1])
def test_numbers_of_classes_are_read_as_their_names(tmp_path, label):
    """As ``datasets`` writes them into a parquet file; a number without a name is no caption."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Value("binary"), "label": datasets.ClassLabel(names=["cat", "red_fox"])}
    )
    rows = pa.table({"image": [number(0), number(1)], "label": pa.array([label, 1], pa.int64())})
    pq.write_table(rows.cast(features.arrow_schema), tmp_path / "a.parquet")
    found, counters = read(tmp_path / "a.parquet")
    named = {0: {0: ("cat",)}, 1: {0: ("red fox",)}}.get(label, {})
    assert found == {**named, 1: ("red fox",)} and counters.bad == ({} if named else {"caption_not_text": 1})


# Tables as spreadsheets and other programs write them


@pytest.mark.parametrize(
    ("text", "encoding", "captions"),
    [
        ("sep=;\r\nimage;caption\r\n0.png;a, b\r\n", "utf-8-sig", "a, b"),
        ('"sep=,"\nimage,caption\n0.png,"a; b; c"\n', "utf-8", "a; b; c"),
        ('"image";"caption, of, the image"\n0.png;a\n', "utf-8", "a"),
        ('"caption; or\n text";image\na;0.png\n', "utf-8", "a"),
        ("image\tcaption\r\n0.png\tein Äpfel\r\n", "utf-16", "ein Äpfel"),
        ("image,caption\n0.png,図\n", "utf-16", "図"),
        (" image , caption \n 0.png , a dog \n", "utf-8", "a dog"),
        ('filepath, title\n0.png, "red, round"\n', "utf-8", "red, round"),
        ("image,caption,,\n0.png,a,,\n", "utf-8", "a"),
        ("image,caption\n0.png,a,,,\n", "utf-8", "a"),
        ("image_name| comment_number| comment\n0.png| 0| a dog .\n", "utf-8", "a dog ."),
    ],
)
def test_tables_of_spreadsheets(folder, text, encoding, captions):
    header = "caption, of, the image" if "of, the" in text else "caption; or\n text" if "; or" in text else None
    options = {"caption_columns": [header]} if header else {}
    assert read(write(folder / "a.csv", text, encoding), **options)[0] == {0: (captions,)}


def test_a_column_that_is_named_twice_keeps_both_values(folder):
    assert read(write(folder / "a.csv", "image,text,text,text\n0.png,a,b,c\n"))[0] == {0: ("a", "b", "c")}


def test_a_column_of_the_bytes_of_images(tmp_path):
    rows = {"image_path": ["gone.png"], "image_bytes": [number(3)], "text": ["three"]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[0] == {3: ("three",)}


@pytest.mark.parametrize(
    "line",
    ['{"image": "0.png", "caption": ' + "[" * 500 + "]" * 500 + "}", "[" * 100_000, '{"image": ' + "9" * 5000 + "}"],
)
def test_a_deep_or_endless_value_costs_its_row(folder, line):
    found, counters = read(write(folder / "a.jsonl", f'{line}\n{{"image": "1.png", "caption": "one"}}\n'))
    assert found == {1: ("one",)} and counters.bad == {"malformed_row": 1}


def test_a_table_in_another_encoding_names_the_cure(folder):
    pairs = open_pairs(write(folder / "a.csv", "image,caption\n0.png,café\n", "latin-1"), policy=ANY)
    with pytest.raises(ValueError, match="row 1: expected a text, got text that is not UTF-8; save it as UTF-8"):
        list(pairs)
    with pytest.raises(SourceError, match=r"no column of captions found; it has 'image', 'caf\\udce9'"):
        open_pairs(write(folder / "b.csv", "image,café\n0.png,x\n", "latin-1"))
