"""Zero-shot classification against transformers' pipeline and the published formula, on the same weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers.factories import save_tiny_clip
from PIL import Image

from clip_guidance.clip import CLIP
from clip_guidance.zero_shot.classifier import ZeroShotClassifier

LABELS = ["cat", "guinea pig", "emoji {of} a 100%", "apple"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder) -> CLIP:
    return CLIP.from_pretrained(folder)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (40, side, 3), dtype=np.uint8)) for side in (40, 64, 33)]


def test_equals_the_pipeline_of_transformers(folder, clip, images):
    pipeline = transformers.pipeline("zero-shot-image-classification", model=str(folder), use_fast=False)
    expected = pipeline(images, candidate_labels=LABELS, hypothesis_template="a photo of a {}.")
    result = ZeroShotClassifier(clip, LABELS, ["a photo of a {}."])(images)
    for row, probs in zip(expected, result.probs, strict=True):
        by_label = {entry["label"]: entry["score"] for entry in row}
        torch.testing.assert_close(probs, torch.tensor([by_label[label] for label in LABELS]), rtol=1e-4, atol=1e-5)
    assert [top[0].label for top in result.top()] == [row[0]["label"] for row in expected]
    assert result.probs.std() > 0.01  # the comparison would say nothing if every label got the same


def test_ensemble_follows_the_formula(clip, images):
    templates = ["a {}", "art of the {}", "{} and {}"]
    classifier = ZeroShotClassifier(clip, LABELS, templates)
    for label, class_embed in zip(LABELS, classifier.class_embeds, strict=True):
        each = [clip.encode_text(template.replace("{}", label))[0] for template in templates]
        mean = sum(each) / len(each)
        torch.testing.assert_close(class_embed, mean / mean.norm())
    result = classifier(images)
    cosines = clip.encode_image(images) @ classifier.class_embeds.T
    torch.testing.assert_close(result.logits, clip.logit_scale.detach().exp() * cosines)
    torch.testing.assert_close(result.probs, result.logits.softmax(1))


def test_texts_are_encoded_once_and_images_in_any_batch_give_the_same(clip, images, monkeypatch):
    classifier = ZeroShotClassifier(clip, LABELS)
    monkeypatch.setattr(clip, "encode_text", lambda *_, **__: pytest.fail("encoded texts again"))
    together, alone = classifier(images), classifier(images[1])
    assert (len(together), len(alone)) == (3, 1)
    torch.testing.assert_close(together.probs[1], alone.probs[0])
    torch.testing.assert_close(classifier(images, batch_size=1).logits, together.logits)
    torch.testing.assert_close(classifier.classify_embeds(7 * clip.encode_image(images)).logits, together.logits)


def test_order_of_labels_does_not_matter(clip, images):
    forwards = ZeroShotClassifier(clip, LABELS)(images)
    backwards = ZeroShotClassifier(clip, LABELS[::-1])(images)
    torch.testing.assert_close(forwards.probs, backwards.probs.flip(1))


def test_a_template_of_the_label_alone_is_the_text_itself(clip):
    classifier = ZeroShotClassifier(clip, LABELS, "{}")
    torch.testing.assert_close(classifier.class_embeds, clip.encode_text(LABELS))
    torch.testing.assert_close(classifier.class_embeds, F.normalize(classifier.class_embeds), rtol=0, atol=1e-6)


def test_top_is_sorted_and_bounded(clip, images):
    result = ZeroShotClassifier(clip, LABELS)(images)
    for row, top in zip(result.probs, result.top(3), strict=True):
        assert [entry.label for entry in top] == [LABELS[i] for i in row.argsort(descending=True)[:3]]
        assert [entry.prob for entry in top] == sorted((entry.prob for entry in top), reverse=True)
    assert all(len(top) == len(LABELS) for top in result.top(99))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        result.top(0)


def test_rows_are_json(clip, images):
    rows = json.loads(json.dumps(ZeroShotClassifier(clip, LABELS)(images).rows(2)))
    assert len(rows) == 3 and len(rows[0]["top"]) == 2
    assert rows[0]["top"][0] == {"label": rows[0]["label"], "prob": rows[0]["prob"]}


@pytest.mark.parametrize(
    "labels,templates,message",
    [
        ("cat", "{}", "labels must be a list of strings, got the string 'cat'"),
        ([], "{}", "expected at least one label, got none"),
        (["cat", " "], "{}", "label 1 is empty"),
        (["cat", "dog", "cat "], "{}", "label 'cat' is given twice"),
        (["cat"], [], "expected at least one template"),
        (["cat"], ["a {}", "a photo"], "template 'a photo' has no {} for the label"),
    ],
)
def test_bad_labels_and_templates(clip, labels, templates, message):
    with pytest.raises(ValueError, match=message):
        ZeroShotClassifier(clip, labels, templates)


def test_templates_come_in_every_published_shape(clip):
    as_text = ZeroShotClassifier(clip, LABELS, ["a photo of a {}.", "art of {}"])
    as_functions = ZeroShotClassifier(clip, LABELS, [lambda c: f"a photo of a {c}.", "art of {c}"])
    assert as_text.class_embeds.equal(as_functions.class_embeds)
    alone = ZeroShotClassifier(clip, LABELS, lambda c: f"art of {c}")
    torch.testing.assert_close(alone.class_embeds, ZeroShotClassifier(clip, LABELS, "art of {}").class_embeds)


def test_each_of_several_labels_is_a_pair_of_prompts(clip, images):
    classifier = ZeroShotClassifier(clip, LABELS, "a {}", multi_label=True, any_image=["an image"])
    result = classifier(images)
    for place, label in enumerate(LABELS):
        pair = ZeroShotClassifier(clip, [f"a {label}", "an image"], "{}")(images)
        torch.testing.assert_close(result.probs[:, place], pair.probs[:, 0])
    fewer = ZeroShotClassifier(clip, LABELS[:2], "a {}", multi_label=True, any_image=["an image"])(images)
    torch.testing.assert_close(fewer.probs, result.probs[:, :2])  # a label does not depend on the others
    for row, above, probs in zip(result.rows(threshold=0.5), result.above(0.5), result.probs, strict=True):
        assert set(row["labels"]) == {label for label, prob in zip(LABELS, probs, strict=True) if prob >= 0.5}
        assert [entry.label for entry in above] == row["labels"]


def test_an_image_of_nothing_offered_gets_no_label(clip, images):
    result = ZeroShotClassifier(clip, LABELS)(images)
    best = result.probs.amax(1)
    rows = result.rows(threshold=float(best.median()))
    assert [row["label"] is None for row in rows] == (best < best.median()).tolist()
    assert [row["prob"] for row in rows] == best.tolist()


def test_calibration_changes_how_sure_it_is_and_nothing_else(clip, images):
    labels = [LABELS[0], LABELS[1], LABELS[0]]
    classifier = ZeroShotClassifier(clip, LABELS)
    before = classifier(images)
    labels = [before.labels[int(row.argmax())] for row in before.logits]
    labels[0] = before.labels[int(before.logits[0].argsort()[-2])]  # one of three is wrong
    temperature = classifier.calibrate(images, labels)
    after = classifier(images)
    assert temperature == classifier.temperature != 1
    torch.testing.assert_close(after.logits * temperature, before.logits)
    rows, targets = torch.arange(3), classifier.numbers(labels)
    likelihood = [result.probs[rows, targets].log().mean() for result in (before, after)]
    assert likelihood[1] > likelihood[0]


def test_mistakes_in_calibration_are_named(clip, images):
    classifier = ZeroShotClassifier(clip, LABELS)
    with pytest.raises(ValueError, match=r"unknown labels \['dog'\]; the classifier knows cat, guinea pig"):
        classifier.calibrate(images, ["cat", "dog", "apple"])
    with pytest.raises(ValueError, match="expected one label per image, got 2 labels and 3 images"):
        classifier.calibrate(images, ["cat", "cat"])
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        ZeroShotClassifier(clip, LABELS, temperature=0.0)
    with pytest.raises(ValueError, match="one label per image to calibrate, got multi_label=True"):
        ZeroShotClassifier(clip, LABELS, multi_label=True).calibrate(images, ["cat"] * 3)
