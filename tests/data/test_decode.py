"""What becomes of one record."""

from pathlib import Path

import pytest
from helpers.corpus import BAD_IMAGES, ODD_IMAGES, animation, encode, noise, rotated

from clip_guidance.data.decode import clean_captions, decode
from clip_guidance.data.policy import Policy
from clip_guidance.data.records import REASONS, BadRow, Record, StoredFile, caption_values
from clip_guidance.images.load import load_image


def become(image, captions=("a thing",), **policy):
    return decode(Record("key", "origin", image, captions), Policy(**policy))


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images_have_one_reason(name):
    data, reason, detail = BAD_IMAGES[name]
    result = become(data)
    assert result.pair is None and result.bad.reason == reason
    assert detail in result.bad.detail


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_odd_images_arrive_as_the_image_loader_makes_them(name):
    data, note = ODD_IMAGES[name]
    result = become(data)
    assert result.bad is None and note in result.notes
    assert result.pair.image.mode == "RGB" and result.pair.image.tobytes() == load_image(data).tobytes()


def test_rotation_is_applied():
    image = become(ODD_IMAGES["rotated"][0]).pair.image
    assert image.size == (2, 4) and image.getpixel((1, 0)) == (0, 0, 0)


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_but_upright_is_noted(orientation):
    result = become(rotated(orientation))
    turned = result.pair.image.getpixel((0, 0)) != (0, 0, 0)  # the black pixel has left its corner
    assert ("rotated" in result.notes) == (2 <= orientation <= 8)
    assert turned == (2 <= orientation <= 8 and orientation != 5)  # 5 mirrors at the diagonal


def test_plain_images_have_no_notes():
    assert become(encode(noise())).notes == () and become(encode(noise())).size == (12, 8)


def test_an_animation_broken_after_its_first_frame_gives_that_frame():
    whole = animation()
    result = become(whole[: whole.rindex(b"\x2c") + 20])
    assert result.pair.image.tobytes() == load_image(whole).tobytes()


@pytest.mark.parametrize(
    ("limits", "reason", "detail"),
    [
        ({"max_pixels": 95}, "too_large", "12 × 8 pixels, more than max_pixels=95"),
        ({"min_side": 9}, "too_small", "12 × 8 pixels, a side is below min_side=9"),
        ({"max_bytes": 30}, "too_many_bytes", "bytes, more than max_bytes=30"),
    ],
)
def test_limits_are_the_policys(limits, reason, detail, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(noise()))
    for image in (encode(noise()), StoredFile(tmp_path / "a.png")):
        result = become(image, **limits)
        assert result.bad.reason == reason and detail in result.bad.detail
    exact = {"max_pixels": 96, "min_side": 8, "max_bytes": len(encode(noise()))}
    assert become(encode(noise()), **exact).bad is None


@pytest.mark.parametrize(
    ("values", "kept", "dropped"),
    [
        (["a cat"], ("a cat",), False),
        ([" a cat\n", "a dog "], ("a cat", "a dog"), False),
        (["a cat", "", None, 7], ("a cat",), True),
        (["a cat", "a dog", "a cat "], ("a cat", "a dog"), True),
        (["a cat", "caf\udce9"], ("a cat",), True),
    ],
)
def test_captions_are_cleaned(values, kept, dropped):
    assert clean_captions(values) == (kept, ("caption_dropped",) * dropped)


@pytest.mark.parametrize(
    ("values", "reason", "detail"),
    [
        ([], "no_caption", "there is no caption"),
        (["", None, " \t"], "no_caption", "the caption is empty"),
        ([7], "caption_not_text", "expected a text, got int 7"),
        ([float("nan")], "caption_not_text", "got float nan"),
        ([["a", "b"]], "caption_not_text", "got list"),
        (["caf\udce9"], "caption_not_text", "got text that is not UTF-8"),
    ],
)
def test_rows_without_a_caption_are_bad(values, reason, detail):
    result = become(encode(noise()), values)
    assert result.bad.reason == reason and detail in result.bad.detail


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ({"caption": "a", "url": "b"}, ["a"]),
        ([{"raw": "a", "tokens": ["x"]}, {"raw": "b"}], ["a", "b"]),
        ({"key": "1"}, [None]),
    ],
)
def test_caption_values_are_found_in_lists_and_objects(value, captions):
    assert caption_values(value) == captions


@pytest.mark.parametrize(
    ("make", "reason", "detail"),
    [
        (lambda folder: folder / "none.png", "missing", "no file .*none.png"),
        (lambda folder: folder, "unreadable", "a folder, not a file"),
        (lambda folder: folder / "null\0.png", "unreadable", "null"),
        (lambda folder: folder / ("x" * 300), "unreadable", "name too long"),
    ],
)
def test_files_that_cannot_be_read(make, reason, detail, tmp_path):
    with pytest.raises(BadRow, match=f"{reason}: .*(?i:{detail})"):
        StoredFile(make(tmp_path)).read(1 << 20)


def test_a_device_is_never_read():
    with pytest.raises(BadRow, match="unreadable: /dev/zero: not a regular file"):
        StoredFile(Path("/dev/zero")).read(1 << 20)


def test_a_denied_file_is_unreadable(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encode(noise()))

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", denied)  # for root no mode of a file denies anything
    result = become(StoredFile(path))
    assert result.bad.reason == "unreadable" and "a.png: Permission denied" in result.bad.detail


def test_reasons_are_known():
    with pytest.raises(ValueError, match="expected one of broken_file, .* got 'ugly'"):
        BadRow("ugly", "very")
    assert all(REASONS.values())


def test_a_transform_makes_the_image():
    result = decode(Record("k", "o", encode(noise()), ["a"]), Policy(), lambda image: image.size)
    assert result.pair.image == (12, 8)
    with pytest.raises(ZeroDivisionError):  # a mistake of the caller, not of the row
        decode(Record("k", "o", encode(noise()), ["a"]), Policy(), lambda image: 1 / 0)
