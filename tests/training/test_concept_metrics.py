"""The questions have one right text of a hundred; who knows nothing scores nothing, who knows all scores all."""

import random

import torch
import torch.nn.functional as F

from clip_guidance.data.dataset import CaptionedImages, Row
from clip_guidance.training import concept_metrics as module
from clip_guidance.training.concept_metrics import by_keywords, concept_metrics, questions, telling

LETTERS = "abcdefghijk"
NAMES = [a + b for a in LETTERS for b in LETTERS]
ROWS = [Row(name, "noto", (f"{name}x", f"y{name}", name)) for name in NAMES]


def data():
    images = torch.randint(0, 256, (len(ROWS), 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    return CaptionedImages(images, ROWS)


class Asked:
    """A CLIP that records what it is asked; its text embeddings are its own, its images those of the right texts."""

    def __init__(self, answers):
        self.answers = answers

    def encode_text(self, texts):
        self.places = {text: place for place, text in enumerate(texts)}
        return torch.zeros(len(texts), 1)

    def encode_image(self, images, batch_size):
        return Lazy(self, len(images))


class Lazy:
    def __init__(self, clip, count):
        self.clip, self.count = clip, count

    def __matmul__(self, texts):
        return self.clip.answers(self.clip.places, self.count)


def test_each_question_has_a_hundred_texts_and_one_is_right():
    for ask in (module._keyword_questions, module._composite_questions):
        images, candidates = ask(data(), random.Random(0))
        assert len(ROWS) - 5 < len(images) == len(candidates)  # the partner of some is themselves
        assert all(len(set(texts)) == 100 for texts in candidates)
    for texts in candidates:  # of composites
        first, second = texts[0].removeprefix("a noto picture of a ").split(" and a ")
        pairs = [text.removeprefix("a noto picture of a ").split(" and a ") for text in texts[1:]]
        kept = [sum(pair[0] == first for pair in pairs), sum(pair[1] == second for pair in pairs)]
        assert kept == [49, 50]  # reading one of the two leaves fifty texts to choose among


def test_who_knows_all_scores_all_and_who_knows_nothing_scores_nothing():
    def knows(places, count):
        right = {0: module._keyword_questions, 1: module._composite_questions}[len(asked)]
        asked.append(count)
        name = ("keywords_top1", "composites_top1")[len(asked) - 1]
        texts = [own[0] for own in right(data(), random.Random(f"0-{name}"))[1]]
        return torch.stack([F.one_hot(torch.tensor(places[text]), len(places)).float() for text in texts])

    asked = []
    found = concept_metrics(Asked(knows), data())
    assert found["keywords_top1"] == found["composites_top1"] == 1.0
    assert found["keywords_top1_low"] > 0.9
    blind = concept_metrics(Asked(lambda places, count: torch.ones(count, len(places))), data())
    assert blind["keywords_top1"] == blind["composites_top1"] == 0.0  # a tie counts against it
    counts = questions(data())
    assert counts["keywords_top1"] == len(ROWS) and len(ROWS) - 5 < counts["composites_top1"] < len(ROWS)


def test_too_few_texts_ask_nothing():
    assert concept_metrics(Asked(None), CaptionedImages(data().images[:5], ROWS[:5])) == {}


def test_keywords_do_not_give_the_name_away():
    row = Row("cat face", "noto", ("cat", "pet", "whiskers", "Face paint", "meow"))
    assert telling(row) == ["pet", "whiskers", "meow"]
    text = by_keywords(row, random.Random(0))
    assert text.endswith(" in noto style") and "cat" not in text and "face" not in text.lower()
