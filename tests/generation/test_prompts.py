"""Files of prompts: each kind gives the same rows, and a bad row costs itself."""

import json

import pytest
from PIL import Image

from clip_guidance.generation.prompts import COLUMNS, read_prompts
from clip_guidance.generation.targets import ImageFile, PlacedTarget

ROWS = [{"prompt": "a cat", "negative_prompt": "a dog", "seed": 7, "scale": 2.5}, {"prompt": "ein Käfer"}]


def write(path, rows):
    if path.suffix in (".csv", ".tsv"):
        between = "," if path.suffix == ".csv" else "\t"
        lines = [["prompt", "Negative Prompt", "seed", "scale"]]
        lines += [[str(row.get(name, "")) for name in ROWS[0]] for row in rows]
        path.write_text("\n".join(map(between.join, lines)), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pd = pytest.importorskip("pandas")  # which makes 7.0 of a 7 beside an empty cell
        pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", pytest.param("parquet", marks=pytest.mark.slow)])
def test_every_kind_of_table_gives_the_same_settings(tmp_path, kind):
    found = read_prompts(write(tmp_path / f"prompts.{kind}", ROWS))
    assert [dict(row.values) for row in found] == ROWS and [row.number for row in found] == [1, 2]
    assert [type(value) for value in found[0].values.values()] == [str, str, int, float]


def test_a_text_gives_a_prompt_per_line_that_is_not_empty(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfa cat, red\r\n\r\n  a dog  \n")
    assert [(row.number, dict(row.values)) for row in read_prompts(path)] == [
        (1, {"prompt": "a cat, red"}), (3, {"prompt": "a dog"})
    ]  # fmt: skip


def test_images_and_regions_start_at_the_folder_of_the_table(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    red = ImageFile.read(str(tmp_path / "red.png"))
    rows = [
        {"prompt": "a", "clip_image": "red.png"},
        {"prompt": "a", "region": ["a cat@0,0,1,1", "file:red.png@0,0,1,1"]},
    ]
    rows += [{"prompt": "a", "clip_image": "gone.png"}, {"prompt": "a", "regions": 3}]
    one, two, gone, number = read_prompts(write(tmp_path / "prompts.jsonl", rows))
    whole = (0.0, 0.0, 1.0, 1.0)
    assert one.values["clip_images"] == (red,)
    assert two.values["regions"] == (PlacedTarget("a cat", whole), PlacedTarget(red, whole))
    assert "gone.png: no such file" in gone.problem
    assert number.problem == "regions must be a text, or a list of texts, got 3"


def test_a_bad_row_says_why_and_the_others_are_read(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a cat"}\nnothing\n{"seed": 3}\n{"prompt": "a dog", "seed": "x"}\n')
    first, broken, none, text = read_prompts(path)
    assert first.values == {"prompt": "a cat"} and not first.problem
    assert "not JSON" in broken.problem and none.problem == "has no prompt"
    assert text.values["seed"] == "x"  # which the settings refuse by name


def test_columns_that_are_not_read_are_told(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,model,negativ\na cat,emoji,a dog\n")
    with pytest.warns(UserWarning, match=r"prompts.csv: these columns are not read: model, negativ; the models, the"):
        (row,) = read_prompts(path)
    assert dict(row.values) == {"prompt": "a cat"}
    assert not {"model", "clip", "judge", "scheduler", "rewards"} & set(COLUMNS) and {"width", "method"} < set(COLUMNS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.png", "a cat", r"a.png: expected a \.txt with one prompt per line, or a table \(\.csv, "),
        ("a.txt", "\n \n", "a.txt: holds no prompt"),
        ("a.csv", "text,seed\na cat,1\n", "a.csv: no column prompt; it has 'text', 'seed'"),
        ("a.csv", "", r"a.csv: cannot be read \(expected a first line"),
        ("a.json", "[1", r"a.json: cannot be read \(not JSON"),
    ],
)
def test_what_is_no_file_of_prompts_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_prompts(tmp_path / name)
    assert len(str(raised.value)) <= 300
