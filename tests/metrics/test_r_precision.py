"""R-precision: by a similarity matrix made by hand, by its hypergeometric expectation, and at its bounds."""

import math

import pytest
import torch
from helpers.factories import TEXTS, make_clip

from clip_guidance.metrics.r_precision import clip_r_precision, r_precision


def of_similarity(similarity, targets, **options):
    """Against the identity, embeddings are similarities."""
    similarity = torch.as_tensor(similarity)
    return r_precision(similarity, torch.eye(similarity.shape[1]), torch.as_tensor(targets), **options)


def test_a_matrix_made_by_hand():
    similarity = [
        [0.9, 0.1, 0.2],  # finds its text
        [0.3, 0.2, 0.1],  # another is ahead
        [0.5, 0.1, 0.5],  # a tie counts as a miss
        [0.1, 0.2, math.nan],  # and so does nan
        [-0.3, -0.2, -0.4],  # the best of bad ones
    ]
    found = of_similarity(similarity, [0, 1, 2, 2, 1], distractors=2)
    assert found.hits.tolist() == [True, False, False, False, True]
    assert (found.value, found.distractors, found.pool, found.seed) == (0.4, 2, 3, 0)


def test_the_share_of_hits_is_hypergeometric():
    """With a texts ahead of the own one among m - 1, k draws miss all of them in C(m-1-a, k) / C(m-1, k) of cases."""
    m, k, n = 12, 4, 4000
    for ahead in (1, 3):
        similarity = torch.arange(m).float().expand(n, m)
        expected = math.comb(m - 1 - ahead, k) / math.comb(m - 1, k)
        found = of_similarity(similarity, torch.full((n,), m - 1 - ahead), distractors=k, seed=5)
        assert abs(found.value - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def test_every_other_text_is_drawn_and_the_own_one_never():
    """With one distractor, each of the other texts is the one ahead for some image, and the own one is not."""
    n, m = 400, 6
    for other in range(m):
        similarity = torch.zeros(n, m)
        similarity[:, 2], similarity[:, other] = 1, 2 if other != 2 else 1
        misses = 1 - of_similarity(similarity, torch.full((n,), 2), distractors=1).value
        assert misses == 0 if other == 2 else 0.1 < misses < 0.3  # one in five


def test_a_draw_depends_on_the_seed_and_the_position_alone():
    similarity = torch.rand(50, 30, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(50) % 30
    whole = of_similarity(similarity, targets, distractors=2, seed=1)
    assert of_similarity(similarity[:20], targets[:20], distractors=2, seed=1).hits.equal(whole.hits[:20])
    assert not of_similarity(similarity, targets, distractors=2, seed=2).hits.equal(whole.hits)


def test_by_a_clip_images_of_one_text_are_no_distractors_of_each_other():
    clip, images = make_clip(), torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts, others = [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[2]], [TEXTS[3], TEXTS[0]]
    found = clip_r_precision(clip, images, prompts, others, distractors=3)
    similarity = clip.encode_image(images) @ clip.encode_text(TEXTS).T
    expected = similarity.argmax(1) == torch.tensor([0, 1, 0, 2])
    assert found.hits.equal(expected) and found.pool == 4
    record = found.record(clip)
    assert (record["definition"], record["distractors"], record["pool"], record["seed"]) == ("r-precision", 3, 4, 0)
    assert record["ties"] == "count as misses" and record["fingerprint"] == clip.fingerprint()


def test_errors():
    clip, images = make_clip(), torch.rand(2, 3, 32, 32)
    with pytest.raises(ValueError, match="between 1 and 1 distractors of 2 distinct texts, got 99"):
        clip_r_precision(clip, images, ["a", "b"])
    with pytest.raises(ValueError, match="a text for each of 2 images, got one text"):
        clip_r_precision(clip, images, "ab")
    with pytest.raises(ValueError, match="a text for each of 2 images, got 3 texts"):
        clip_r_precision(clip, images, ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"got \(0, 3\), \(3, 3\) and \(0,\)"):
        of_similarity(torch.ones(0, 3), torch.zeros(0), distractors=1)


@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_that_is_no_text_is_refused(target):
    with pytest.raises(ValueError, match=f"expected targets from 0 to 2, got {min(0, target)} to {max(0, target)}"):
        of_similarity(torch.ones(2, 3), torch.tensor([0, target]), distractors=1)
