"""The judge of the steering benchmark: ranks, names, nearest images, intervals, and how far the guide agrees."""

import pytest
import torch

import clip_guidance as cg
from clip_guidance.data.dataset import CaptionedImages, Row

pytestmark = pytest.mark.usefixtures("steering")  # its programs can be imported


class Embeddings:
    """A CLIP whose texts and images are vectors."""

    def __init__(self, texts):
        self.texts = texts

    def encode_text(self, texts, batch_size=0):
        return torch.stack([self.texts[text] for text in texts])

    def encode_image(self, images):
        return images


def test_ranks_count_ties_against_the_image():
    from judging import Judge
    from prompt_sets import Item

    texts = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0]), "c": torch.tensor([1.0, 0.0])}
    judge = Judge.__new__(Judge)
    judge.clip = Embeddings(texts)
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    items = [Item("", "a", ("b",)), Item("", "a", ("b",)), Item("", "a", ("b", "c"))]
    assert judge.ranks(images, items).tolist() == [1, 2, 3]


def test_the_nearest_image_is_the_nearest():
    from judging import nearest

    training = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    images = torch.cat([training[3:4], torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)])
    every = ((images[:, None].double() - training.double()) / 255).square().flatten(2).mean(2).sqrt()
    found = nearest(images, training)
    torch.testing.assert_close(found.distance, every.min(1).values.float(), atol=2e-3, rtol=1e-3)
    assert found.number.equal(every.argmin(1)) and found.number[0] == 3


def test_paired_resamples_cancel_what_methods_share():
    from judging import mean_interval

    luck = (torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    gain = mean_interval((luck + 1) - luck)
    assert (gain.low, gain.estimate, gain.high) == pytest.approx((1, 1, 1))
    alone = mean_interval(luck)
    half_width = 1.96 * (luck.var().item() / 200) ** 0.5  # of the normal approximation
    assert alone.high - alone.low == pytest.approx(2 * half_width, rel=0.15)


def test_of_all_names_is_the_judges_first_choice_in_the_style():
    """Real images, beside an independent search; a tie with another name is no choice."""
    from judging import Judge
    from prompt_sets import Item

    judge = cg.CLIP.from_pretrained("emoji-judge")
    names, style = ["red apple", "cat face", "rocket", "panda"], "twemoji"
    images = torch.randint(0, 256, (8, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    held_out = CaptionedImages(images, [Row(name, style, ()) for name in names * 2])
    found = Judge(judge, held_out, held_out)
    items = [Item("", "", (), i) for i in range(8)]
    right = found.named(images, items)
    texts = judge.encode_text([f"a {style} picture of a {name}" for name in names])
    best = (judge.encode_image(images) @ texts.T).argmax(1).tolist()
    assert right.tolist() == [float(names[choice] == row.name) for choice, row in zip(best, held_out.rows, strict=True)]
    assert 0 < right.sum() < 8
    assert found.named(images, [*items[:-1], Item("", "", ())]) is None


def test_agreement_counts_what_guide_and_judge_say():
    from agreement import shares

    generator = torch.Generator().manual_seed(0)
    guide, judge, knows = (torch.rand(40, generator=generator).round().double() for _ in range(3))
    both = sum(g == j == 1 for g, j in zip(guide.tolist(), judge.tolist(), strict=True))
    known = sum(k == j == 1 for k, j in zip(knows.tolist(), judge.tolist(), strict=True))
    expected = (
        guide.sum() / 40,
        judge.sum() / 40,
        both / guide.sum(),
        known / knows.sum(),
        (judge.sum() - known) / (40 - knows.sum()),
    )
    found = shares(guide, judge, knows)
    assert [cell.split(" (")[0] for cell in found] == [f"{100 * float(share):.1f}" for share in expected]
    assert shares(guide, judge, torch.ones(40))[-1] == ""  # of none there is no share
