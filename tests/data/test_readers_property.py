"""Whatever is written: each reader gives what the standard library or the writer says, or a sentence that names it."""

import csv
import io
import json
import tempfile
from pathlib import Path

import pytest
from helpers.corpus import number, read_number, write_members
from hypothesis import assume, example, given
from hypothesis import strategies as st

from clip_guidance.data import Policy, open_pairs

ANY = Policy(max_bad_share=1)
NAMES = ["image", "caption"]
CELLS = st.text("aZ0 é図🍎,;|\t\"'\n=#\\", max_size=8)
WORDS = st.text("aZ0é図", min_size=1, max_size=5)


def pairs_of(path, **options):
    """Return the captions by the numbers of the images, or the error: a short ValueError that names the input."""
    pairs = open_pairs(path, policy=ANY, **options)
    try:
        return {read_number(pair.image): pair.captions for pair in pairs}
    except ValueError as error:
        assert "none of" in str(error) or "there is no row" in str(error)
        assert len(str(error).replace(str(path), "")) <= 300
        return {}


def cleaned(texts):
    return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(3):
        (folder / f"{i}.png").write_bytes(number(i))
    return folder


@given(
    rows=st.lists(st.tuples(CELLS, CELLS), max_size=3),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    marked=st.booleans(),
    other=CELLS.filter(lambda name: name and name.strip() == name),
)
def test_a_table_gives_what_the_csv_module_gives(images, rows, delimiter, quoting, end, encoding, marked, other):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([["image", "caption", other], *([f"{i}.png", *row] for i, row in enumerate(rows))])
    path = images / "table.csv"
    path.write_bytes(((f"sep={delimiter}{end}" if marked else "") + text.getvalue()).encode(encoding))
    with io.StringIO(text.getvalue(), newline="") as again:
        expected = {int(row[0][0]): cleaned([row[1]]) for row in list(csv.reader(again, delimiter=delimiter))[1:]}
    assert pairs_of(path) == {i: texts for i, texts in expected.items() if texts}


@given(
    data=st.binary(max_size=60), suffix=st.sampled_from(["csv", "tsv", "jsonl", "json", "txt.csv"]), head=st.booleans()
)
def test_any_bytes_are_a_table_or_a_sentence(images, data, suffix, head):
    path = images / f"any.{suffix}"
    path.write_bytes((b"image,caption\n0.png,zero\n" if head else b"") + data)
    try:
        pairs = open_pairs(path, policy=ANY)
        found = {read_number(pair.image): pair.captions for pair in pairs}
    except ValueError as error:
        assert str(path) in str(error) and len(str(error).replace(str(path), "")) <= 300
        return
    assert set(found) <= {0, 1, 2}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | CELLS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["caption", "text", "raw", "x"]), inner)
    ),
    max_leaves=6,
)


@given(values=st.lists(JSON, min_size=1, max_size=3))
def test_any_json_is_captions_or_a_bad_row(images, values):
    path = images / "any.jsonl"
    rows = [{"image": f"{i}.png", "caption": value} for i, value in enumerate(values)]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = pairs_of(path)
    plain = {i: value for i, value in enumerate(values) if isinstance(value, str)}
    assert {i: texts for i, texts in found.items() if i in plain} == {
        i: cleaned([value]) for i, value in plain.items() if value.strip()
    }


@given(
    keys=st.lists(st.lists(WORDS, min_size=1, max_size=3).map(".".join), unique_by=str.lower, min_size=1, max_size=3),
    kinds=st.lists(st.sampled_from(["txt", "caption", "json", None]), min_size=3, max_size=3),
    apart=st.booleans(),
    mode=st.sampled_from(["w", "w:gz"]),
)
def test_a_tar_gives_each_image_the_text_of_its_name(keys, kinds, apart, mode):
    assume(len({key.partition(".")[0].lower() for key in keys}) == len(keys))
    images, texts, expected = [], [], {}
    for i, (key, kind) in enumerate(zip(keys, kinds, strict=False)):
        images.append((f"{key}.png", number(i)))
        if kind is not None:
            words = f"caption {i}"
            texts.append((f"{key}.{kind}", (json.dumps({"caption": words}) if kind == "json" else words).encode()))
            expected[i] = (words,)
    members = images + texts if apart else sorted(images + texts)
    with tempfile.TemporaryDirectory() as folder:
        path = write_members(Path(folder, "a.tar"), members, mode)
        assert pairs_of(path) == expected


@given(data=st.binary(max_size=1200), cut=st.integers(0, 5000))
def test_any_bytes_are_a_tar_or_a_sentence(data, cut):
    with tempfile.TemporaryDirectory() as folder:
        path = write_members(Path(folder, "a.tar"), [("1.png", number(1)), ("1.txt", b"one")])
        path.write_bytes(path.read_bytes()[:cut] + data)
        assert pairs_of(path) in ({}, {1: ("one",)})


@given(
    stems=st.lists(
        st.lists(WORDS, min_size=1, max_size=2).map(".".join), unique_by=str.casefold, min_size=1, max_size=3
    ),
    image=st.sampled_from(["png", "PNG", "jpg"]),
    text=st.sampled_from(["txt", "TXT", "caption", "Caption"]),
    layout=st.sampled_from(["{}", "images/{}", "a/{}"]),
    apart=st.booleans(),
)
def test_a_folder_gives_each_image_the_text_of_its_name(stems, image, text, layout, apart):
    with tempfile.TemporaryDirectory() as folder:
        for i, stem in enumerate(stems):
            place = Path(folder, layout.format(f"{stem}.{image}"))
            beside = (
                Path(folder, "captions", f"{stem}.{text}")
                if apart and layout != "a/{}"
                else place.with_name(f"{stem}.{text}")
            )
            for path, data in ((place, number(i)), (beside, f"caption {i}".encode())):
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(data)
        assert pairs_of(folder) == {i: (f"caption {i}",) for i in range(len(stems))}


@given(image=st.none() | WORDS, captions=st.lists(WORDS, max_size=2))
@example(image="png", captions=["txt"])
@example(image=None, captions=["alt"])
def test_columns_of_any_name_pick_what_is_called_so_or_say_what_there_is(image, captions):
    described = {"alt": "of alt", "caption": "of json"}
    texts = {
        "txt": ["of txt"],
        "json": list(described.values())[1:],
        **{key: [value] for key, value in described.items()},
    }
    with tempfile.TemporaryDirectory() as folder:
        members = [("1.png", number(1)), ("1.txt", b"of txt"), ("1.json", json.dumps(described).encode())]
        path = write_members(Path(folder, "a.tar"), members)
        (Path(folder) / "a.csv").write_text("image,caption\n1.png,a\n")
        found = pairs_of(path, image_column=image, caption_columns=captions)
        names = [name.lower() for name in captions]
        if image is not None and image.lower() != "png":
            assert found == {}
        elif not captions:
            assert found == {1: ("of txt",)}
        elif len(names) == 1:
            assert found == ({1: tuple(texts[names[0]])} if names[0] in texts else {})
        if captions and not {"caption"}.issuperset(captions):
            with pytest.raises(ValueError, match=r"a.csv: no column .*; it has 'image', 'caption'"):
                open_pairs(Path(folder) / "a.csv", caption_columns=captions)
