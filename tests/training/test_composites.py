"""Composites hold two images of one style and say so; what is drawn depends on seed, step and place alone."""


import pytest
import torch
from accelerate import Accelerator

from clip_guidance.data.dataset import CaptionedImages, Row
from clip_guidance.training.batches import MemoryBatches, draw
from clip_guidance.training.composites import Composites, joined
from clip_guidance.training.order import SampleOrder

NAMES = ("cat", "dog", "bus", "tree", "ball", "fish")
ROWS = [Row(name, style, (f"{name} word", "thing")) for style in ("noto", "twemoji") for name in NAMES]


def batches(**options):
    images = torch.randint(0, 256, (len(ROWS), 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    data = CaptionedImages(images, ROWS)
    return MemoryBatches(data, SampleOrder(len(data), 6, 5, Accelerator()), 5, **options)


def test_a_composite_holds_both_images_at_half_their_size():
    first, second = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    beside, above = joined(first, second, stacked=False), joined(first, second, stacked=True)
    halves = [image.reshape(3, 4, 2, 4, 2).mean((2, 4)) for image in (first, second)]
    torch.testing.assert_close(beside[:, 2:6, :4], halves[0])
    torch.testing.assert_close(beside[:, 2:6, 4:], halves[1])
    torch.testing.assert_close(above[:, :4, 2:6], halves[0])
    torch.testing.assert_close(above[:, 4:, 2:6], halves[1])
    assert (beside[:, :2] == 1).all() and (above[:, :, 6:] == 1).all()


def test_captions_name_both_and_tell_who_is_above():
    composites = Composites(ROWS, 0.5)
    drawn = {seed: composites.draw(0, f"step {seed}", 0) for seed in range(400)}
    found = [each for each in drawn.values() if each is not None]
    assert 160 < len(found) < 240  # half of 400: there is always a partner of another name
    for each in found:
        other = ROWS[each.partner]
        assert other.style == "noto" and other.name != "cat"
        assert "cat" in each.caption and other.name in each.caption
        assert each.name == " + ".join(sorted(("cat", other.name)))
        if "above" in each.caption or "below" in each.caption:
            assert each.stacked and each.caption in (f"a cat above a {other.name}", f"a {other.name} below a cat")
    assert any("above" in each.caption for each in found) and any("below" in each.caption for each in found)
    assert Composites(ROWS, 0.0).draw(0, "step", 0) is None


def test_composites_of_a_step_share_their_parts():
    composites = Composites(ROWS, 0.5, partners=2)
    for seed in map(str, range(40)):
        drawn = [composites.draw(index, seed, index) for index in range(len(ROWS))]
        halves = {row.name for row, each in zip(ROWS, drawn, strict=True) if each is not None}
        both_styles = zip(NAMES, drawn[: len(NAMES)], drawn[len(NAMES) :], strict=True)
        assert all((noto is None) == (twemoji is None) for _, noto, twemoji in both_styles), halves
        for style in ("noto", "twemoji"):
            partners = {each.partner for each in drawn if each is not None and ROWS[each.partner].style == style}
            assert len(partners) <= 2
    firsts = [composites.draw(0, "0", place) for place in range(64)]
    assert firsts.count(None) in (0, 64)
    assert len({(each.partner, each.stacked) for each in firsts if each}) in (0, 2, 4)  # the place draws among few


def test_a_style_of_one_concept_has_no_composites():
    rows = [Row("cat", "noto", ()), Row("cat", "noto", ())]
    assert all(Composites(rows, 1.0).draw(0, str(seed), 0) is None for seed in range(20))


def test_a_batch_of_composites_is_the_same_when_a_run_goes_on():
    made = batches(composite_share=0.8)
    for step in range(2):
        batch, again, plain = made(step), batches(composite_share=0.8)(step), batches()(step)
        assert batch.images.equal(again.images) and batch.captions == again.captions and batch.names == again.names
        partners = batch.described["partners"]
        assert partners
        for place in range(6):
            if place not in partners:
                assert batch.images[place].equal(plain.images[place])
                assert (batch.captions[place], batch.names[place]) == (plain.captions[place], plain.names[place])
                continue
            second = made.data.images[partners[place]].float() / 255
            made_of = [joined(plain.images[place], second, stacked) for stacked in (False, True)]
            assert any(batch.images[place].equal(image) for image in made_of)
            assert ROWS[partners[place]].name in batch.names[place]


def test_some_captions_are_keywords_alone():
    captions, mirrored = draw(ROWS * 50, "seed", 0, True, keyword_share=0.25)
    plain, as_before = draw(ROWS * 50, "seed", 0, True)
    told = [c.replace(f"{row.name} word", "") for c, row in zip(captions, ROWS * 50, strict=True)]
    nameless = [c for c, row in zip(told, ROWS * 50, strict=True) if row.name not in c]
    assert 0.15 < len(nameless) / len(captions) < 0.35
    assert all(row.name in c for c, row in zip(plain, ROWS * 50, strict=True))
    assert len(mirrored) == len(as_before) == 600


def test_a_share_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"composite_share: expected a share in \[0, 1\], got 1.5"):
        Composites(ROWS, 1.5)
