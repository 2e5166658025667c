"""Any source as captioned images in memory, as the training programs take them."""

import random

import pytest
import torch
from helpers.corpus import encode, noise, number, write_tar

from clip_guidance.data import Policy, TooManyBadRows
from clip_guidance.data.dataset import CaptionedImages, Row, caption


def test_images_and_captions_of_any_source(tmp_path):
    rows = [("0", number(3), ["three", "drei"]), ("1", b"", ["none"]), ("2", encode(noise()), ["noise"])]
    data = CaptionedImages.from_pairs(write_tar(tmp_path, rows), size=5, policy=Policy(max_bad_share=0.5), workers=2)
    assert data.images.shape == (2, 3, 5, 5) and data.images.dtype == torch.uint8
    assert (data.images[0] == torch.tensor([0, 3, 0], dtype=torch.uint8).view(3, 1, 1)).all()
    assert data.rows == [Row("three", "", (), ("three", "drei")), Row("noise", "", (), ("noise",))]
    assert data.skipped == [(1, "empty: is empty (0 bytes)")]
    assert len(CaptionedImages.join([data, data.subset([1])])) == 3


def test_rows_may_be_left_out_by_their_captions(tmp_path):
    rows = [("0", number(3), ["three", "drei"]), ("1", b"", ["none"]), ("2", b"", ["drei"]), ("3", number(4), ["four"])]
    path = write_tar(tmp_path, rows)
    data = CaptionedImages.from_pairs(path, exclude="drei", policy=Policy(max_bad_share=0.5))
    assert [row.name for row in data.rows] == ["four"]
    assert data.skipped == [(1, "empty: is empty (0 bytes)")]  # counted as in the source
    with pytest.raises(TooManyBadRows, match="none of 1 rows gives a pair"):
        CaptionedImages.load(write_tar(tmp_path, rows), exclude="r")


def test_too_many_bad_rows_end_it(tmp_path):
    with pytest.raises(TooManyBadRows, match="1 of 2 rows are bad"):
        CaptionedImages.from_pairs(write_tar(tmp_path, [("0", number(0), ["a"]), ("1", b"", ["b"])]))


def test_a_row_with_captions_is_called_by_them_alone():
    row, rng = Row("a red apple", "", (), ("a red apple", "ein Apfel")), random.Random(0)
    assert row.prompt == "a red apple"
    drawn = [caption(row, rng) for _ in range(200)]
    assert set(drawn) == set(row.captions) and 60 < drawn.count("ein Apfel") < 140
