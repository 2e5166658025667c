"""Captions that lie apart from their images, as published data sets have them; and texts that nobody would read."""

import csv
import json

import pytest
from helpers.corpus import number, read_number
from PIL import Image

from clip_guidance.data import Policy, SourceError, open_pairs

ANY = Policy(max_bad_share=1)
CAPTIONS = {0: ("a dog , running",), 1: ("two cats",), 2: ("a red bus", "a bus")}


def captions(path, **options):
    pairs = open_pairs(path, policy=ANY, **options)
    return {read_number(pair.image): pair.captions for pair in pairs}


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def flickr8k(folder):
    for i in CAPTIONS:
        put(folder / f"Images/{i}.jpg", number(i))
    with (folder / "captions.txt").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *([f"{i}.jpg", text[0]] for i, text in CAPTIONS.items())])
    return {i: text[:1] for i, text in CAPTIONS.items()}


def two_folders(folder):
    for i, texts in CAPTIONS.items():
        put(folder / f"images/{i}.jpg", number(i))
        put(folder / f"captions/{i}.txt", "\n".join(texts))
    return CAPTIONS


def two_folders_in_each_split(folder):
    for i, texts in CAPTIONS.items():
        split = "train" if i else "val"
        put(folder / f"{split}/Images/{i}.jpg", number(i))
        put(folder / f"{split}/txt/{i}.TXT", "\n".join(texts))
    return CAPTIONS


def coco(folder):
    images = [{"id": 10 + i, "file_name": f"{i}.jpg"} for i in CAPTIONS]
    notes = [{"image_id": 10 + i, "id": 7, "caption": text} for i, texts in CAPTIONS.items() for text in texts]
    for i in CAPTIONS:
        put(folder / f"val2017/{i}.jpg", number(i))
    put(folder / "annotations/captions_val2017.json", json.dumps({"info": {}, "images": images, "annotations": notes}))
    put(folder / "annotations/instances_val2017.json", json.dumps({"images": images, "annotations": []}))
    return CAPTIONS


def other_endings(folder):
    endings = [("JPG", "TXT"), ("png", "caption"), ("jpg", "jpg.txt")]
    for (i, texts), (image, text) in zip(CAPTIONS.items(), endings, strict=True):
        put(folder / f"{i}.{image}", number(i))
        put(folder / f"{i}.{text}", "\n".join(texts))
    return CAPTIONS


def json_of_objects(folder):
    for i in CAPTIONS:
        put(folder / f"{i}.jpg", number(i))
    put(
        folder / "captions.json", json.dumps([{"image": f"{i}.jpg", "caption": texts} for i, texts in CAPTIONS.items()])
    )
    return CAPTIONS


LAYOUTS = [flickr8k, two_folders, two_folders_in_each_split, coco, other_endings, json_of_objects]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_image_has_its_own_captions(layout, tmp_path):
    expected = layout(tmp_path)
    assert captions(tmp_path) == expected


def test_cocos_captions_open_by_themselves(tmp_path):
    coco(tmp_path)
    assert captions(tmp_path / "annotations/captions_val2017.json") == CAPTIONS


@pytest.mark.parametrize("text", ["words/1.txt", "notes.json", "tags.csv", "a.xml", "captions.txt"])
def test_texts_that_lie_unread_are_named_where_all_images_get_one_caption(text, tmp_path):
    for i in range(2):
        put(tmp_path / f"img/{i}.jpg", number(i))
    put(tmp_path / text, "a dog")
    with pytest.raises(SourceError) as caught:
        open_pairs(tmp_path)
    said = str(caught.value)
    assert f"2 images would be captioned 'img' by their folder, and text files lie unread: {text}; put a .txt" in said
    assert len(said) <= 300


def test_texts_called_like_images_of_several_classes_are_named_too(tmp_path):
    for split in ("train2017", "val2017"):
        put(tmp_path / f"{split}/{split}_1.jpg", number(1))
        put(tmp_path / f"words/{split}_1.txt", "a dog")
    with pytest.raises(SourceError, match=r"lie unread: words/train2017_1.txt, words/val2017_1.txt; put a .txt"):
        open_pairs(tmp_path)


def test_classes_with_a_text_about_them_stay_classes(tmp_path):
    for name in ("cat", "dog"):
        put(tmp_path / f"{name}/1.jpg", number(1))
    put(tmp_path / "notes.txt", "cats and dogs")
    put(tmp_path / "sizes.csv", "class,size")
    assert sorted(pair.captions for pair in open_pairs(tmp_path)) == [("cat",), ("dog",)]


def test_an_image_with_captions_in_two_folders_is_named(tmp_path):
    put(tmp_path / "images/1.jpg", number(1))
    put(tmp_path / "captions/1.txt", "a dog")
    put(tmp_path / "texts/1.txt", "a cat")
    with pytest.raises(SourceError, match=r"images/1.jpg has captions in captions/1.txt and in texts/1.txt; keep one"):
        open_pairs(tmp_path)


def test_a_table_whose_images_are_in_two_folders_is_refused(tmp_path):
    for folder in ("large", "small"):
        put(tmp_path / f"{folder}/1.jpg", number(1))
    put(tmp_path / "captions.csv", "image,caption\n1.jpg,a dog\n")
    with pytest.raises(SourceError, match=r"1.jpg is in large/ and in small/; write the paths of the images"):
        open_pairs(tmp_path)
    put(tmp_path / "images/1.jpg", number(1))  # of a customary name
    assert captions(tmp_path) == {1: ("a dog",)}


def test_columns_pick_files_of_a_folder(tmp_path):
    for i in range(2):
        put(tmp_path / f"{i}.input.png", number(i))
        put(tmp_path / f"{i}.target.png", number(10 + i))
        put(tmp_path / f"{i}.outputs.txt", f"output {i}")
        put(tmp_path / f"{i}.json", json.dumps({"alt": f"alt {i}", "caption": "no"}))
    picked = {"image_column": "target", "caption_columns": ["outputs.txt"]}
    assert captions(tmp_path, **picked) == {10: ("output 0",), 11: ("output 1",)}
    assert captions(tmp_path, image_column="input.png", caption_columns=["alt"]) == {0: ("alt 0",), 1: ("alt 1",)}


def test_an_empty_text_leaves_the_word_to_the_next_kind(tmp_path):
    put(tmp_path / "0.png", number(0))
    put(tmp_path / "0.txt", "\n")
    put(tmp_path / "0.caption", "a dog")
    assert captions(tmp_path) == {0: ("a dog",)}


def test_a_folder_of_another_data_set_beside_that_of_the_table_is_not_read(tmp_path):
    for place in ("mine", "other"):
        (tmp_path / place).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "other" / "a.png")
    (tmp_path / "mine" / "pairs.csv").write_text("image,caption\na.png,a square\n")
    with pytest.raises(ValueError, match="none of 1 rows gives a pair: 1 missing"):
        list(open_pairs(tmp_path / "mine" / "pairs.csv"))
