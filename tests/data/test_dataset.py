"""Captioned images, captions, views of them, and retrieval among them."""

import random
import sys

import pytest
import torch
from helpers.tables import write_table
from PIL import Image

from clip_guidance.data import SourceError
from clip_guidance.data.dataset import PHRASES, CaptionedImages, Row, caption
from clip_guidance.metrics.retrieval import recall_at_k, unique
from clip_guidance.training.augment import random_erasing, random_grayscale, random_noise, random_views


def test_reads_resizes_and_skips(tmp_path):
    path = write_table(tmp_path / "t.parquet", ["cat", "dog", "cat: dark skin tone", "cow"], broken=(1,))
    data = CaptionedImages.from_parquet(path, size=6, exclude="skin tone")
    assert [row.name for row in data.rows] == ["cat", "cow"]
    assert data.images.shape == (2, 3, 6, 6) and data.images.dtype == torch.uint8
    assert (data.images[1] == 90).all()
    assert [row for row, _ in data.skipped] == [1]


def test_bad_tables_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no table of images at .*none\.parquet"):
        CaptionedImages.from_parquet(tmp_path / "none.parquet")
    with pytest.raises(SourceError, match=r"\['style'\] missing"):
        CaptionedImages.from_parquet(write_table(tmp_path / "a.parquet", drop=("style",)))
    path = write_table(tmp_path / "b.parquet", broken=(0, 1))
    with pytest.raises(SourceError, match=r"no usable image \(2 unreadable"):
        CaptionedImages.from_parquet(path)
    assert len(CaptionedImages.from_parquet(write_table(tmp_path / "c.parquet"), exclude="")) == 2  # no filter


@pytest.mark.parametrize("read", [CaptionedImages.load, CaptionedImages.from_parquet])
def test_a_table_without_pyarrow_names_the_extra(tmp_path, monkeypatch, read):
    path = write_table(tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SourceError, match=r"t\.parquet: parquet needs pyarrow: pip install 'clip-guidance\[data\]'"):
        read(path)


def test_a_folder_needs_no_pyarrow(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red square")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert CaptionedImages.load(tmp_path, size=8).rows[0].captions == ("a red square",)


def test_captions_vary_and_always_hold_the_name():
    row = Row("red apple", "noto", ("fruit", "food"))
    rng = random.Random(0)
    drawn = [caption(row, rng) for _ in range(300)]
    assert all("red apple" in text for text in drawn)
    assert len(set(drawn)) > 10 and row.prompt == "a noto picture of a red apple"
    assert 0.2 < sum(text == row.prompt for text in drawn) / 300 < 0.4
    assert sum(weight for weight, _ in PHRASES) == pytest.approx(1)


def test_real_images(shared_data):
    data = CaptionedImages.from_parquet(shared_data / "emoji64-val.parquet", exclude="skin tone")
    assert len(data) == 789 and data.images.shape[1:] == (3, 64, 64) and not data.skipped


def test_views_of_white_stay_white_and_in_range():
    torch.manual_seed(0)
    white = torch.ones(4, 3, 16, 16)
    torch.testing.assert_close(random_views(white, colour=0.0), white)
    images = torch.rand(4, 3, 16, 16)
    views = random_views(images)
    assert views.min() >= 0 and views.max() <= 1 and not torch.allclose(views, images)
    torch.testing.assert_close(random_views(images, 0.0, 0.0, 0.0, 0.0), images)


def test_what_moves_in_has_the_values_of_the_border():
    torch.manual_seed(0)
    blue = torch.tensor([0.1, 0.2, 0.7])[:, None, None].expand(8, 3, 16, 16)
    torch.testing.assert_close(random_views(blue, colour=0.0), blue.contiguous())
    dark = 0.3 * torch.rand(8, 3, 16, 16)
    assert random_views(dark, colour=0.0).max() <= 0.3
    framed = torch.ones(8, 3, 16, 16)
    framed[..., 4:12, 4:12] = 0
    views = random_views(framed, colour=0.0)
    torch.testing.assert_close(views[..., [0, -1]][..., [0, -1], :], torch.ones(8, 3, 2, 2))


def test_noise_falls_on_a_share_of_the_images():
    images = torch.full((400, 3, 8, 8), 0.5)
    spread = (random_noise(images, max_std=0.2, probability=0.5) - images).flatten(1).std(1)
    noisy = spread[spread > 0]
    assert 150 < len(noisy) < 250
    # uniform in [0, 0.2]: mean 0.1 with a standard error of 0.058 / sqrt(200) = 0.004, three of them 0.012
    assert noisy.max() < 0.25 and abs(noisy.mean() - 0.1) < 0.016
    assert random_noise(images, probability=0.0).equal(images)


def test_grey_images_keep_their_luma_and_shape():
    images = torch.rand(400, 3, 4, 4)
    views = random_grayscale(images, 0.25)
    grey = (views == views[:, :1]).flatten(1).all(1)
    assert 0.15 < grey.float().mean() < 0.35 and views[~grey].equal(images[~grey])
    luma = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    torch.testing.assert_close(views[grey, 0], luma[grey])


def test_holes_are_white_squares_on_a_share_of_the_images():
    black = torch.zeros(400, 3, 20, 20)
    views = random_erasing(black, probability=0.5, side=0.4)
    assert views.unique().tolist() == [0, 1]
    areas = views[:, 0].sum((1, 2))
    assert 0.4 < (areas > 0).float().mean() < 0.6 and areas.max() <= 81  # (2 * 4 + 1) squared
    assert areas[areas > 0].mean() > 50  # those at the rim are cut
    assert random_erasing(black, probability=0.0).equal(black)


def test_what_has_sides_is_not_mirrored():
    for name in ("left arrow", "eight o’clock", "OK button", "flag: Chad", "hourglass", "cat"):
        assert Row(name, "noto", ()).mirrors == (name in ("hourglass", "cat"))


def test_joined_tables_keep_their_order(tmp_path):
    parts = [
        CaptionedImages.from_parquet(write_table(tmp_path / f"{name}.parquet", [name, "dog"], broken=[1]))
        for name in ("cat", "bus")
    ]
    joined = CaptionedImages.join(parts)
    assert [row.name for row in joined.rows] == ["cat", "bus"] and len(joined.skipped) == 2
    assert joined.images.equal(torch.cat([part.images for part in parts]))


def test_recall_counts_ties_against_the_model():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.4, 0.3], [0.1, 0.2, 0.0]])
    targets = torch.tensor([0, 1, 2])
    found = recall_at_k(similarity, torch.eye(3), targets, (1, 2, 3))
    assert found == pytest.approx({"R@1": 1 / 3, "R@2": 2 / 3, "R@3": 1})
    assert recall_at_k(torch.ones(3, 3), torch.eye(3), targets)["R@1"] == 0
    assert recall_at_k(torch.full((3, 3), torch.nan), torch.eye(3), targets)["R@1"] == 0


def test_unique_numbers_names_in_order():
    names, numbers = unique(["b", "a", "b"])
    assert names == ["b", "a"] and numbers.tolist() == [0, 1, 0]
