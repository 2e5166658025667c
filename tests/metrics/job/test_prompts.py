"""Prompts are read as training reads captions: one reader for scoring, checking and training."""

import os
from pathlib import Path

import pytest
from helpers.corpus import number

from clip_guidance.data import Policy, open_pairs
from clip_guidance.metrics.job.items import check_table, read_items


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
