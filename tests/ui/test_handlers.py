"""The handlers of Classify, Compare and Search, on the packaged models and without a browser."""

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'clip-guidance[ui]'")


from clip_guidance.index import ImageIndex
from clip_guidance.metrics.similarity import image_similarity
from clip_guidance.ui.classify import classify
from clip_guidance.ui.compare import compare
from clip_guidance.ui.search import build, search
from clip_guidance.ui.state import MAX_IMAGES
from clip_guidance.zero_shot.classifier import ZeroShotClassifier


def refused(message: str):
    return pytest.raises((ValueError, OSError), match=message)


# Classify


def test_classify_shows_the_likeliest_label_of_each_image_and_names_the_bad_one(state, files):
    shown = classify(state, files, "rocket, red apple,\ndog face", False, "emoji")
    (page,) = shown.values
    assert "3 of 3 images (100%) are unlike those that emoji was trained on" in shown.notes[0]  # noise
    good = [path for path, _ in files if "broken" not in path]
    top = ZeroShotClassifier(state.clip("emoji"), ["rocket", "red apple", "dog face"])(good).top()
    assert page.count('class="bar"') == 3 * len(good)
    for (best,) in top:
        assert f"{best.prob:.1%}" in page
    assert "z broken.png" in page and "is empty (0 bytes)" in page
    assert "&lt;i&gt;c.png" in page and "<i>c.png" not in page  # a name is text


@pytest.mark.parametrize(
    ("labels", "chosen", "message"),
    [
        ("rocket", None, "Images: there is no image yet; drop, paste or choose at least one"),
        (" , ", "all", "Labels is empty: type what the images may show"),
        ("a, b, a", "all", "label 'a' is given twice"),
        ("rocket", "broken", r"Images: z broken\.png is empty \(0 bytes\)"),
        ("rocket", "many", f"Images: the page takes {MAX_IMAGES} images at once, got {MAX_IMAGES + 1}"),
    ],
)
def test_what_cannot_be_classified_is_told(state, files, labels, chosen, message):
    chosen = {"all": files, "broken": files[-1:], "many": files[:1] * (MAX_IMAGES + 1), None: None}[chosen]
    with refused(message):
        classify(state, chosen, labels, False, "emoji")


# Compare


def test_compare_shows_the_cosines(state, files):
    first, second = files[:2], files[1:]
    shown = compare(state, first, second, "emoji")
    (page,) = shown.values
    assert len(shown.notes) == 2 and all("2 of 2 images (100%) are unlike" in note for note in shown.notes)
    expected = image_similarity(state.clip("emoji"), [path for path, _ in first], [path for path, _ in second[:-1]])
    for cosine in expected.flatten().tolist():
        assert f">{cosine:.3f}<" in page
    assert page.count('class="shade"') == 4 and "z broken.png" in page
    (alone,) = compare(state, first, None, "emoji").values
    assert alone.count(">1.000<") == 2  # each is like itself


@pytest.mark.parametrize(("first", "second"), [(None, "all"), ("broken", "all"), ("all", "broken")])
def test_a_set_without_images_is_told(state, files, first, second):
    sets = {"all": files, "broken": files[-1:], None: None}
    with refused("First set: there is no image yet|(First|Second) set: z broken.png is empty"):
        compare(state, sets[first], sets[second], "emoji")


# Search


@pytest.fixture(scope="module")
def index(state, files) -> str:
    *_, status = build(state, "images", "photos.index", "emoji")
    assert "3 images in the index" in status and "3 added, 0 unchanged, 1 failed" in status
    assert "\n- 3 of 3 images (100%) are unlike those that emoji was trained on" in status  # noise
    assert "z broken.png" in status and "is empty (0 bytes)" in status
    return "photos.index"


def test_an_image_finds_itself(state, files, index):
    found = search(state, index, "", files[1:2], "", 2)
    assert [caption for _, caption in found.images][:1] == ["1.000 · a.png"] and len(found.images) == 2


def test_a_filter_by_an_unknown_key_is_told(state, index):
    found = search(state, index, "rocket", None, "foo = 1", 3)
    (message,) = found.failed
    assert found.images == [] and message.endswith("has the key 'foo'; the keys there are: path")


def test_text_image_and_filter_work_together(state, files, index):
    plain = search(state, index, "rocket", None, "", 3)
    both = search(state, index, "rocket", files[:1], 'path ~ "*b.png"', 3)
    assert len(plain.images) == 3 and len(both.images) == 1 and both.images[0][1].endswith("b.png")
    cosines = [float(caption.split()[0]) for _, caption in plain.images]
    assert cosines == sorted(cosines, reverse=True)


def test_an_index_keeps_its_own_clip(state, index):
    *_, status = build(state, "images", index, "emoji-judge")
    assert "of the CLIP emoji:" in status and "0 added, 3 unchanged" in status


def test_an_image_that_is_gone_is_told_and_the_others_are_shown(state):
    folder = state.root / "fleeting"
    folder.mkdir()
    for name in ("stays.png", "goes.png"):
        Image.new("RGB", (8, 8), "red" if name[0] == "s" else "blue").save(folder / name)
    list(build(state, "fleeting", "fleeting.index", "emoji"))
    (folder / "goes.png").unlink()
    found = search(state, "fleeting.index", "red", None, "", 5)
    assert len(found.images) == 1 and found.failed == [f"{folder / 'goes.png'}: no such file"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"index": "../elsewhere"}, r"Index: \.\./elsewhere lies outside of .*\(--root\)"),
        ({"index": "/etc"}, "Index: /etc lies outside of"),
        ({"index": " "}, "Index is empty: type the name of a folder in"),
        ({"index": "gone.index"}, "Index: there is no gone.index in .*; open 'Build the index"),
        ({"text": ""}, "Text is empty: type what to search for, or give an image"),
        ({"text": "rocket -"}, "query: expected a text or an image at character 9"),
        ({"count": 0}, "Images shown must be from 1 to 100, got 0"),
        ({"where": "year >"}, "where: expected a value at character 7"),
    ],
)
def test_what_cannot_be_searched_is_told(state, index, values, message):
    known = {"index": index, "text": "rocket", "files": None, "where": "", "count": 3}
    with refused(message):
        search(state, **known | values)


def test_a_query_opens_no_file_of_this_machine(state, files, index):
    with refused("a page opens no path of a query"):
        search(state, index, f"rocket + {files[1][0]}", None, "", 3)
    with refused("lies outside of"):
        list(build(state, "..", index, "emoji"))
    (state.root / "link").symlink_to("/")
    with refused("lies outside of"):
        list(build(state, "link", index, "emoji"))
    with refused("Images: there is no folder gone in"):
        list(build(state, "gone", index, "emoji"))


def test_links_that_lead_out_of_the_root_are_not_read(state, files, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8), "red").save(secret)
    folder = state.root / "links"
    folder.mkdir()
    (folder / "out.png").symlink_to(secret)
    (folder / "in.png").symlink_to(files[0][0])
    *_, status = build(state, "links", "links.index", "emoji")
    assert "1 added, 0 unchanged, 1 failed" in status and "out.png`: lies outside of" in status
    opening = ImageIndex.open(str(state.root / "outside.index"), state.clip("emoji"))
    with opening as index, pytest.warns(UserWarning, match="2 of 2 images .* are unlike"):
        index.add([secret, files[1][0]])  # by the command line, for which the whole machine is open
    found = search(state, "outside.index", "red", None, "", 5)
    assert len(found.images) == 1 and found.failed == [f"{secret}: {state.outside}"]
