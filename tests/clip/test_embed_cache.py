"""Embeddings kept on the disk: found by bytes and model, the CLIP's own numbers, shared and safe."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.factories import save_tiny_clip
from PIL import Image

from clip_guidance.clip import CLIP
from clip_guidance.clip.embed_cache import CachedCLIP, EmbedCache, EmbedCacheError, cache_key, encode_files
from clip_guidance.images.load import ImageError
from clip_guidance.metrics.clip_score import clip_score
from clip_guidance.metrics.similarity import duplicate_images, image_similarity
from clip_guidance.zero_shot.classifier import ZeroShotClassifier


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return [CLIP.from_pretrained(save_tiny_clip(tmp_path_factory.mktemp("clip"), seed)) for seed in range(2)]


@pytest.fixture
def paths(tmp_path):
    random = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(random.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return [tmp_path / f"{name}.png" for name in "abc"]


@pytest.fixture
def cache(tmp_path):
    with EmbedCache(tmp_path / "cache") as cache:
        yield cache


def refuse(monkeypatch):
    """From now on no image may be encoded."""

    def refused(*_, **__):
        raise AssertionError("encoded an image that is cached")

    monkeypatch.setattr(CLIP, "image_embeds", refused)


def test_what_was_encoded_is_found_by_its_bytes(clips, paths, cache, tmp_path, monkeypatch):
    cached = CachedCLIP(clips[0], cache)
    first = cached.encode_image(paths)
    assert torch.equal(first, clips[0].encode_image(paths))
    refuse(monkeypatch)
    moved = paths[1].rename(tmp_path / "moved.png")
    assert torch.equal(cached.encode_image([moved, paths[0].read_bytes()], batch_size=1), first[[1, 0]])


def test_another_clip_another_precision_and_changed_files_are_not_mixed_up(clips, paths, cache):
    CachedCLIP(clips[0], cache).encode_image(paths)
    assert torch.equal(CachedCLIP(clips[1], cache).encode_image(paths), clips[1].encode_image(paths))
    assert len({cache_key(clips[0]), cache_key(clips[1])}) == 2
    paths[0].write_bytes(paths[2].read_bytes())
    a, _, c = CachedCLIP(clips[0], cache).encode_image(paths)
    assert torch.equal(a, c)


def test_some_new_among_the_known(clips, paths, cache):
    cached = CachedCLIP(clips[0], cache)
    cached.encode_image(paths[1])
    in_memory = Image.open(paths[0]).convert("RGB")
    found = cached.encode_image([paths[0], paths[1], in_memory, paths[2]])
    torch.testing.assert_close(found, clips[0].encode_image([paths[0], paths[1], in_memory, paths[2]]))


def test_it_stands_in_for_the_clip(clips, paths, cache, monkeypatch):
    clip, cached = clips[0], CachedCLIP(clips[0], cache)
    expected = [
        clip_score(clip, paths, "a cat"),
        image_similarity(clip, paths, paths),
        ZeroShotClassifier(clip, ["cat", "dog"])(paths).probs,
        torch.tensor(duplicate_images(clip, [paths[0], paths[1], paths[0]], 0.99)),
    ]
    cached.encode_image(paths)
    refuse(monkeypatch)
    found = [
        clip_score(cached, paths, "a cat"),
        image_similarity(cached, paths, paths),
        ZeroShotClassifier(cached, ["cat", "dog"])(paths).probs,
        torch.tensor(duplicate_images(cached, [paths[0], paths[1], paths[0]], 0.99)),
    ]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_unreadable_image_is_named(clips, paths, cache, tmp_path):
    paths[1].write_bytes(b"oops")
    with pytest.raises(ImageError, match=r"b\.png: is not an image"):
        CachedCLIP(clips[0], cache).encode_image(paths)
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        CachedCLIP(clips[0], cache).encode_image(tmp_path / "gone.png")


@pytest.mark.parametrize("with_cache", [True, False])
def test_files_are_encoded_batch_by_batch_and_the_bad_ones_named(clips, paths, cache, tmp_path, with_cache):
    clip = clips[0]
    (tmp_path / "oops.png").write_bytes(b"oops")
    odd = tmp_path / "\udcff.png"  # a name that is no text
    odd.write_bytes(paths[2].read_bytes())
    files = [paths[0], tmp_path / "oops.png", tmp_path / "gone.png", tmp_path, paths[1], odd]
    for _ in range(2):  # the second time known
        batches = list(encode_files(CachedCLIP(clip, cache) if with_cache else clip, files, batch_size=4))
        assert [batch.names for batch in batches] == [[str(paths[0])], [str(paths[1]), str(odd)]]
        assert [(skipped.path, skipped.reason) for skipped in batches[0].skipped] == [
            (str(tmp_path / "oops.png"), "is not an image"),
            (str(tmp_path / "gone.png"), "no such file"),
            (str(tmp_path), "is a folder that holds no image"),
        ]
        expected = clip.encode_image([paths[0], paths[1], paths[2]])
        torch.testing.assert_close(torch.cat([batch.embeds for batch in batches]), expected)
    none = list(encode_files(clip, [tmp_path / "gone.png"]))
    assert none[0].embeds.shape == (0, clip.config.projection_dim) and list(encode_files(clip, [])) == []


def test_a_damaged_file_is_told(cache):
    (cache.folder / "key.sqlite").write_bytes(b"precious" * 200)
    with pytest.raises(EmbedCacheError, match=r"key.sqlite: file is not a database; if it is damaged, delete it"):
        cache.get("key", "00ff")


@pytest.mark.slow
def test_what_was_put_survives_a_kill_and_is_seen_by_other_processes(cache):
    code = f"""
import os, signal, torch
from clip_guidance.clip.embed_cache import EmbedCache
cache = EmbedCache({str(cache.folder)!r})
cache.put("key", {{"00ff": torch.arange(3.0)}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert cache.get("key", "00ff") is None
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert torch.equal(cache.get("key", "00ff"), torch.arange(3.0))


def test_what_is_not_finite_is_not_kept(cache):
    cache.put("key", {"00": torch.tensor([1.0, torch.nan]), "01": torch.tensor([1.0, torch.inf]), "02": torch.ones(2)})
    assert cache.get("key", "00") is None and cache.get("key", "01") is None
    assert torch.equal(cache.get("key", "02"), torch.ones(2))
