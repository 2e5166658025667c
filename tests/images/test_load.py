"""The loader's declared policy, on a corpus of awkward images built here."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from clip_guidance.images.load import ImageBatch, ImageError, as_list, find_images, load_image, load_images


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixel(source, xy=(0, 0)) -> tuple[int, ...]:
    image = load_image(source)
    assert image.mode == "RGB"
    return image.getpixel(xy)


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8))


def test_every_kind_of_source_gives_the_same_image(image, tmp_path):
    path = tmp_path / "a.png"
    image.save(path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    sources = [image, path, str(path), path.read_bytes(), array, array / 255.0, tensor, tensor / 255]
    for source in sources:
        assert np.array_equal(np.asarray(load_image(source)), array)


def test_grey_array_and_tensor():
    grey = np.array([[0, 128], [255, 7]], dtype=np.uint8)
    for source in (grey, grey[:, :, None], torch.from_numpy(grey)[None]):
        assert [pixel(source, xy) for xy in [(0, 0), (1, 0)]] == [(0, 0, 0), (128, 128, 128)]


def test_half_precision_tensors_load():
    assert pixel(torch.ones(3, 2, 2, dtype=torch.bfloat16)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = Image.new("RGB", (4, 2), "white")
    upright.putpixel((0, 0), (255, 0, 0))
    # what a camera stores: the inverse of the turn that the tag asks for
    stored_by = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose values
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(stored_by[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_image(encode(stored, exif=exif))
    assert np.array_equal(np.asarray(loaded), np.asarray(upright))


def test_broken_exif_does_not_lose_the_image():
    assert pixel(encode(Image.new("RGB", (2, 2), "red"), "PNG", exif=b"Exif\0\0rubbish")) == (255, 0, 0)


@pytest.mark.parametrize("mode,colour", [("RGBA", (255, 0, 0, 0)), ("LA", (0, 0)), ("RGBa", (0, 0, 0, 0))])
def test_full_transparency_is_white(mode, colour):
    assert pixel(Image.new(mode, (2, 2), colour)) == (255, 255, 255)


def test_half_transparent_red_is_pink():
    assert pixel(Image.new("RGBA", (2, 2), (255, 0, 0, 128))) == (255, 127, 127)


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_palette_transparency_is_white(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    data = encode(image, transparency=transparency)
    assert (pixel(data), pixel(data, (1, 0))) == ((255, 255, 255), (0, 0, 255))


def test_colour_key_transparency_is_white():
    assert pixel(encode(Image.new("RGB", (2, 2), "red"), transparency=(255, 0, 0))) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_saturated():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for source in (ramp, encode(Image.fromarray(ramp)), encode(Image.fromarray(ramp), "TIFF")):
        loaded = np.asarray(load_image(source))[..., 0].astype(float)
        assert np.abs(loaded - ramp / 257).max() <= 0.5 + 1e-9


def test_float_tiff_is_scaled():
    assert pixel(encode(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF")) == (128, 128, 128)


def test_cmyk_becomes_rgb():
    data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert b"Adobe" in data[:64]  # whose programs store the inks inverted
    assert np.abs(np.array(pixel(data)) - (255, 0, 0)).max() <= 2


def test_bilevel_loads():
    assert pixel(Image.new("1", (2, 2), 1)) == (255, 255, 255)


def test_loading_leaves_the_callers_image_as_it_was():
    image = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    load_image(image)
    assert image.mode == "RGBA" and image.getpixel((0, 0)) == (255, 0, 0, 0)


def huge_png() -> bytes:
    """A valid header that promises 60,000 × 60,000 pixels in 60 bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


PNG = encode(Image.effect_noise((64, 64), 50).convert("RGB"))
BAD_FILES = {
    "empty.png": (b"", r"empty \(0 bytes\)"),
    "truncated.png": (PNG[: len(PNG) // 2], "cannot be read"),
    "truncated.jpg": (encode(Image.open(io.BytesIO(PNG)), "JPEG")[:-400], "image file is truncated"),
    "header.png": (PNG[:20], "is not an image|cannot be read"),
    "flipped.png": (PNG[:60] + bytes(b ^ 255 for b in PNG[60:]), "cannot be read"),
    "text.png": (b"hello, I am a text file", "is not an image"),
    "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC is not supported; convert it to PNG or JPEG"),
    "logo.svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG is not supported"),
    "commented.svg": (b"<!--" + b" " * 3000 + b"--><svg/>", "SVG is not supported; convert it to PNG or JPEG"),
    "paper.pdf": (b"%PDF-1.7\n", "PDF is not supported"),
    "bomb.png": (huge_png(), "too large, above the cap of 179 megapixels .*3600000000 pixels.*MAX_IMAGE_PIXELS"),
    "lab.tif": (encode(Image.new("LAB", (2, 2)), "TIFF"), "colour mode LAB is not supported"),
    "deep.tif": (
        encode(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"),
        "expected 16-bit values, got 7",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_by_name(name, tmp_path):
    data, reason = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ImageError, match=f"{name}: .*{reason}"):
        load_image(path)
    with pytest.raises(ImageError, match=reason):
        load_image(data)


@pytest.mark.parametrize(
    "source,message",
    [
        ("no/such.png", r"no/such.png: no such file"),
        ("https://example.org/a.png", "a.png: is an address; download"),
        (np.zeros((2, 2, 5)), r"expected an array \(H, W\) or \(H, W, 3\), got \(2, 2, 5\)"),
        (np.zeros((0, 2, 3)), r"got \(0, 2, 3\)"),
        (np.zeros((2, 2), np.int64), "expected bool, uint8, uint16 or float in .* got int64"),
        (np.full((2, 2), np.nan), r"expected values in \[0, 1\], got nan"),
        (torch.linspace(-1, 1, 12).view(3, 2, 2), r"expected values in \[0, 1\], got -1 to 1"),
        (torch.zeros(2, 2), r"expected a tensor \(3, H, W\), got \(2, 2\)"),
        (torch.zeros(2, 3, 4, 4), r"expected a tensor \(3, H, W\), got \(2, 3, 4, 4\)"),
        (7, "expected a PIL image, path, bytes, array or tensor, got int"),
    ],
)
def test_bad_sources_say_what_was_expected(source, message):
    with pytest.raises(ImageError, match=message):
        load_image(source)


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(ImageError, match=f"{tmp_path.name}: is a folder that holds no image"):
        load_image(tmp_path)


def test_skipping_reports_each_bad_image_and_keeps_the_rest(tmp_path):
    sources = []
    for i in range(7):
        path = tmp_path / f"{i}.png"
        path.write_bytes(b"" if i in (2, 6) else encode(Image.new("RGB", (2, 2), (i, 0, 0))))
        sources.append(path)
    batches = list(load_images(sources, batch_size=2, on_error="skip"))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert [index for batch in batches for index in batch.indices] == [0, 1, 3, 4, 5]
    assert [image.getpixel((0, 0))[0] for batch in batches for image in batch.images] == [0, 1, 3, 4, 5]
    skipped = [entry for batch in batches for entry in batch.skipped]
    assert [(entry.path, entry.reason) for entry in skipped] == [
        (str(sources[i]), "is empty (0 bytes)") for i in (2, 6)
    ]
    with pytest.raises(ImageError, match=r"2\.png: is empty"):
        list(load_images(sources))


def test_nothing_readable_still_reports(tmp_path):
    assert [len(batch.skipped) for batch in load_images([b"", "none.png"], on_error="skip")] == [2]


def test_batches_are_made_lazily():
    endless = (Image.new("RGB", (2, 2)) for _ in itertools.count())
    assert isinstance(next(load_images(endless, batch_size=3)), ImageBatch)


def test_on_error_is_checked():
    with pytest.raises(ValueError, match="on_error must be 'raise' or 'skip', got 'ignore'"):
        list(load_images([], on_error="ignore"))


def test_find_images_expands_folders_and_globs_in_order(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.webp", "notes.txt", ".hidden.png", ".git/d.png", "e.heic"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    everything = ["a.JPG", "b.png", "e.heic", "sub/c.webp"]
    assert find_images([tmp_path]) == [tmp_path / name for name in everything]
    assert find_images([f"{tmp_path}/*.png"]) == [tmp_path / "b.png"]
    assert find_images([f"{tmp_path}/**/*.webp"]) == [tmp_path / "sub/c.webp"]
    kept = [tmp_path / "gone.png", tmp_path / "*.gif"]  # what matches nothing must fail by name later
    assert find_images(kept) == kept


def test_a_file_whose_name_looks_like_a_glob_is_found(tmp_path):
    path = tmp_path / "take [1].png"
    path.touch()
    assert find_images([path]) == [path]


def test_as_list_tells_one_from_many():
    image = Image.new("RGB", (2, 2))
    for one in (image, "a.png", b"", np.zeros((2, 2, 3)), torch.zeros(3, 2, 2)):
        (listed,) = as_list(one)
        assert listed is one
    assert len(as_list(torch.zeros(5, 3, 2, 2))) == len(as_list(np.zeros((5, 2, 2, 3)))) == 5
    assert len(as_list(path for path in ("a.png", "b.png"))) == 2
    with pytest.raises(ValueError, match="at least one image"):
        as_list([])
