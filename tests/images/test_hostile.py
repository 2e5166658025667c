"""Files that are made to do harm: of other formats, of any size, of any bytes."""

import io
import os

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers.factories import save_tiny_clip
from helpers.limits import little_memory
from hypothesis import given
from PIL import EpsImagePlugin, Image

from clip_guidance.clip import CLIP
from clip_guidance.clip.embed_cache import encode_files
from clip_guidance.data.decode import decode
from clip_guidance.data.policy import Policy
from clip_guidance.data.records import Record
from clip_guidance.images.decoders import FORMATS, open_image
from clip_guidance.images.load import ImageError, load_image, load_images
from clip_guidance.images.metadata import read_record

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n0 0 8 8 rectfill\nshowpage\n"
PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
LOSSLESS = ("PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP")


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format, **({"lossless": True} if format == "WEBP" else {}))
    return buffer.getvalue()


FILES = {format: encoded(format) for format in FORMATS}


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> CLIP:
    return CLIP.from_pretrained(save_tiny_clip(tmp_path_factory.mktemp("clip")))


def test_no_other_decoder_is_started_whatever_a_file_is_named(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1) or Image.new("RGB", (8, 8)))
    path = tmp_path / "cat.png"
    path.write_bytes(EPS)
    with pytest.raises(ImageError, match=r"cat\.png: EPS is not supported; convert it to PNG or JPEG$"):
        load_image(path)
    assert read_record(path) is None
    found = decode(Record("cat", "here", EPS, ("a cat",)), Policy())
    assert str(found.bad) == "unknown_format: EPS is not supported; convert it to PNG or JPEG"
    assert not started


@pytest.mark.parametrize("format", LOSSLESS)
def test_the_listed_formats_are_read_as_they_were_written(format):
    pixels = PIXELS if format != "GIF" else np.asarray(Image.open(io.BytesIO(FILES["GIF"])).convert("RGB"))
    assert np.array_equal(np.asarray(load_image(FILES[format])), pixels)
    assert open_image(io.BytesIO(FILES[format])).format == format


def test_a_sparse_file_costs_itself_alone(tmp_path):
    with (tmp_path / "sparse.png").open("wb") as file:
        file.write(FILES["PNG"])
        file.truncate(1 << 40)
    (tmp_path / "good.png").write_bytes(FILES["PNG"])
    with little_memory(256 << 20):
        (batch,) = load_images([tmp_path / "sparse.png", tmp_path / "good.png"], on_error="skip")
    assert [entry.reason for entry in batch.skipped] == ["too large, 1099.5 GB where 1.1 GB are the cap"]
    assert np.array_equal(np.asarray(batch.images[0]), PIXELS)


@pytest.mark.parametrize("where", ["file", "decoding", "preprocessing"])
def test_an_image_for_which_memory_does_not_suffice_costs_itself_alone(where, tmp_path, clip, monkeypatch):
    paths = [tmp_path / "a.png", tmp_path / "large.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(FILES["PNG"])
    expected = clip.encode_image([paths[0], paths[2]])
    Image.new("L", (8000, 8000) if where == "decoding" else (80, 80)).save(paths[1])
    if where == "file":
        os.truncate(paths[1], 1 << 29)
    if where == "preprocessing":
        process = type(clip.image_processor).__call__

        def processed(self, image):
            if image.width == 80:
                raise MemoryError
            return process(self, image)

        monkeypatch.setattr(type(clip.image_processor), "__call__", processed)
    with little_memory(1 << 30 if where == "preprocessing" else 64 << 20):
        (batch,) = encode_files(clip, paths)
    assert [(entry.path, entry.reason) for entry in batch.skipped] == [
        (str(paths[1]), "needs more memory than there is")
    ]
    assert (batch.embeds - expected).abs().max() < 1e-6


@st.composite
def damaged(draw) -> bytes:
    """A file of any format in which bytes are changed, missing or too many; or any bytes."""
    data = bytearray(FILES[draw(st.sampled_from(FORMATS))])
    for place, byte in draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4)):
        data[place % len(data)] = byte
    data = data[: draw(st.integers(0, len(data)) | st.just(len(data)))] + draw(st.binary(max_size=20))
    return draw(st.just(bytes(data)) | st.binary(max_size=200))


@pytest.mark.filterwarnings("ignore")
@given(damaged(), st.sampled_from(["a.png", "x" * 500]))
def test_any_bytes_are_an_image_or_refused_by_name(data, name):
    assert read_record(io.BytesIO(data)) is None
    try:
        loaded = load_image(data, name)
    except ImageError as error:
        assert len(str(error)) <= 300 and str(error).startswith(("a.png: ", "…xxx")) and error.name == name
        return
    assert loaded.mode == "RGB"
    theirs = Image.open(io.BytesIO(data))
    if theirs.mode in ("RGB", "L", "CMYK") and not theirs.has_transparency_data and not theirs.getexif():
        assert np.array_equal(np.asarray(loaded), np.asarray(theirs.convert("RGB")))


@pytest.mark.parametrize("length", range(1, 8))
def test_a_file_too_short_for_any_header_is_no_image(length):
    """Some decoders' tests of the first bytes fail on fewer bytes than they read."""
    with pytest.raises(ImageError, match="is not an image$"):
        load_image(b"x" * length)
