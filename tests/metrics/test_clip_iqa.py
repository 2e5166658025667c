"""CLIP-IQA: the softmax over a pair of texts, and an honest name."""

import pytest
import torch
from helpers.factories import make_clip

from clip_guidance.metrics.clip_iqa import PAIRS, PromptPair, clip_iqa, get_pair

IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clip():
    return make_clip()


def test_is_the_sigmoid_of_the_difference_of_the_logits(clip):
    image_embeds = clip.encode_image(IMAGES)
    positive, negative = clip.encode_text(["Sharp photo.", "Blurry photo."])
    expected = (100 * (image_embeds @ positive - image_embeds @ negative)).sigmoid()
    found = clip_iqa(clip, IMAGES, ["sharpness", "sharp photo", "Sharp photo./Blurry photo."])
    assert list(found) == ["sharpness", "sharp photo", "Sharp photo./Blurry photo."]
    for scores in found.values():
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)


def test_a_pair_turned_round_gives_the_rest_of_one(clip):
    found = clip_iqa(clip, IMAGES, ["art/noise", "noise/art", "art/art"])
    torch.testing.assert_close(found["art/noise"] + found["noise/art"], torch.ones(4))
    torch.testing.assert_close(found["art/art"], torch.full((4,), 0.5))


def test_a_common_shift_of_both_cosines_changes_nothing(clip):
    """Only how the two texts differ counts: what both share is left out, whatever the image."""
    shared = torch.tensor([0.0, 0.0, 1.0])
    images = torch.tensor([[0.6, 0.0, 0.8], [0.6, 0.8, 0.0]])
    texts = torch.stack([torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])])
    pair = PromptPair("own", "a", "b", logit_scale=2.0)
    scores = pair.scores(clip, images, texts.expand(2, 2, 3))
    torch.testing.assert_close(scores, (2 * torch.tensor([0.6, 0.6 - 0.8])).sigmoid())
    torch.testing.assert_close(pair.scores(clip, images, (texts + shared).expand(2, 2, 3)), scores)


def test_the_record_says_whether_the_tower_has_positions(clip):
    with_positions = get_pair("good photo").record(clip)
    record = get_pair("quality").record(make_clip("resnet", "cbow"))
    assert with_positions["definition"] == record["definition"] == "clip-iqa:quality"  # one name for two judges
    assert (with_positions["positional_embedding"], record["positional_embedding"]) == (True, False)
    assert (record["positive"], record["negative"], record["logit_scale"]) == ("Good photo.", "Bad photo.", 100.0)


def test_the_built_in_pairs_are_the_sixteen_published_ones():
    assert len(PAIRS) == 16 and len({text for pair in PAIRS.values() for text in pair}) == 32
    assert all(get_pair(name) == get_pair(texts[0].rstrip(".").lower()) for name, texts in PAIRS.items())


@pytest.mark.parametrize("pair", ["shiny photo", "good photo/", "/bad photo", ""])
def test_unknown_pairs(pair):
    with pytest.raises(ValueError, match=f"no CLIP-IQA pair '{pair}'; there are quality, .*or two texts with a slash"):
        get_pair(pair)
