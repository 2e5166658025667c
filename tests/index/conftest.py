"""A tiny CLIP, another one, and images."""

import json
from pathlib import Path

import pytest
from helpers.factories import save_tiny_clip
from helpers.index_helpers import COUNT, free_port, make_store, need_milvus, put, save_image, start_server, unit_vectors

import clip_guidance as cg
from clip_guidance.clip import CLIP


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> CLIP:
    return CLIP.from_pretrained(save_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="session")
def other_clip(tmp_path_factory) -> CLIP:
    return CLIP.from_pretrained(save_tiny_clip(tmp_path_factory.mktemp("other"), seed=1))


@pytest.fixture
def images(tmp_path) -> list[Path]:
    return [save_image(tmp_path / "images" / f"{name}.png", seed) for seed, name in enumerate("abcdef")]


@pytest.fixture(scope="session")
def milvus_server(tmp_path_factory):
    """A milvus-lite server on 127.0.0.1."""
    need_milvus()
    port = free_port()
    process = start_server(tmp_path_factory.mktemp("server"), port)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


def _milvus(request, tmp_path) -> str:
    need_milvus()
    return str(tmp_path / "x.db") if request.param == "file" else request.getfixturevalue("milvus_server")


@pytest.fixture(params=[pytest.param("file", marks=pytest.mark.slow), "server"])
def milvus_address(request, tmp_path) -> str:
    return _milvus(request, tmp_path)


@pytest.fixture(params=["folder", *(pytest.param(each, marks=pytest.mark.slow) for each in ("file", "server"))])
def any_address(request, tmp_path) -> str:
    return str(tmp_path / "index") if request.param == "folder" else _milvus(request, tmp_path)


@pytest.fixture
def open_index(tmp_path, any_address):
    """Opens the index; its folder, or the catalogue that belongs to Milvus, is ``index``."""
    place = {} if Path(any_address) == tmp_path / "index" else {"catalogue": tmp_path / "index"}
    return lambda clip=None, **options: cg.ImageIndex.open(any_address, clip, **place, **options)


@pytest.fixture
def index(open_index, clip):
    with open_index(clip) as index:
        yield index


@pytest.fixture
def encoded(clip, monkeypatch):
    """Numbers of images that passed through the image tower, pass by pass."""
    passes, encode = [], clip.image_embeds
    monkeypatch.setattr(clip, "image_embeds", lambda pixels: passes.append(len(pixels)) or encode(pixels))
    return passes


@pytest.fixture
def made(tmp_path, clip, images):
    """The folder of an index of six images; nobody has it open."""
    with cg.ImageIndex.open(tmp_path / "index", clip) as index:
        index.add(images, metadata={"year": 2020})
    return tmp_path / "index"


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory):
    """The folder of an index of random vectors, number i with the metadata n = i."""
    folder = tmp_path_factory.mktemp("made") / "index"
    store = make_store(folder)
    for number, vector in enumerate(unit_vectors(COUNT)):
        put(store, [f"/photos/{number}.png"], vector[None], json.dumps({"n": number}))
    store.close()
    return folder
