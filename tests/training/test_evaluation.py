"""What is measured during training: against scipy's interval, a perfect CLIP, and the definitions written out."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.factories import TinyCLIP, make_clip
from helpers.tables import write_table
from PIL import Image
from safetensors import safe_open
from scipy.stats import binomtest

from clip_guidance.clip import CLIP
from clip_guidance.data.dataset import CaptionedImages, Row
from clip_guidance.metrics import retrieval
from clip_guidance.metrics.retrieval import recall_at_k
from clip_guidance.metrics.statistics import wilson_interval
from clip_guidance.training.evaluation import at_chance, evaluating, name_recall, retrieval_metrics, zero_shot_metrics
from clip_guidance.training.log import read_log
from clip_guidance.training.objective import ContrastiveObjective
from clip_guidance.zero_shot.classifier import ZeroShotClassifier

CLASSES = ["cat", "dog", "red fox", "bus", "tree", "house"]


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 40), (40, 40), (7, 40), (499, 1000)])
def test_the_interval_is_wilsons(hits, count):
    for confidence in (0.95, 0.5):
        expected = binomtest(hits, count).proportion_ci(confidence, method="wilson")
        found = wilson_interval(hits / count, count, confidence)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("share", "count"), [(0.5, 0), (1.5, 3), (float("nan"), 3)])
def test_what_is_no_share_is_named(share, count):
    with pytest.raises(ValueError, match=rf"expected a share in \[0, 1\] of at least one case, got {share} of {count}"):
        wilson_interval(share, count)


class Ideal(TinyCLIP):
    """A CLIP that knows the images: each is of one colour value, the number of its row in ``known``."""

    def __init__(self, known, embeds):
        super().__init__()
        self.known, self.embeds = known, embeds

    def encode_image(self, images, batch_size):
        return self.embeds[images[:, 0, 0, 0].long()]

    def encode_text(self, texts, batch_size=256):
        return self.embeds[[self.known[text] for text in texts]]


def images(count):
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)


def test_recall_where_images_share_captions_and_have_several(monkeypatch):
    """Three directions; the third image looks like the second, and one caption is right for two images."""
    monkeypatch.setattr(retrieval, "BLOCK", 2)
    embeds = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.9, 0.1]]), dim=-1)
    rows = [Row("a", "", (), ("a", "first")), Row("b", "", (), ("b",)), Row("b", "", (), ("b", "c"))]
    clip = Ideal({"a": 0, "first": 0, "b": 1, "c": 2}, embeds)
    found = retrieval_metrics(clip, CaptionedImages(images(3), rows))
    assert found["retrieval_text_R@1"] == 1 and found["retrieval_image_R@1"] == 1
    clip.known["c"] = 0  # a caption that says what the first image shows
    found = retrieval_metrics(clip, CaptionedImages(images(3), rows))
    assert found["retrieval_text_R@1"] == pytest.approx(2 / 3)  # "c" now ties with what is right for the first
    assert found["retrieval_image_R@1"] == pytest.approx(3 / 4) and found["retrieval_image_R@5"] == 1
    low, high = (found[f"retrieval_image_R@1_{end}"] for end in ("low", "high"))
    expected = wilson_interval(3 / 4, 3)  # of three images
    assert (low, high) == (expected.low, expected.high)


def test_captions_are_asked_as_they_are_and_names_in_a_sentence():
    """The CLIP knows these texts and no others: asked with another one it fails."""
    rows = [Row("a cat, asleep", "", (), ("a cat, asleep", "b")), Row("dog", "noto", ())]
    rows += [Row("a bus", "", (), ("a bus",))]
    clip = Ideal({"a cat, asleep": 0, "a picture of a dog": 1, "a bus": 2}, torch.eye(3))
    assert name_recall(clip, CaptionedImages(images(3), rows)) == {"R@1": 1, "R@5": 1}


def test_chance_is_the_mean_over_all_orders():
    rows = [Row("a", "", (), ("a", "x")), Row("b", "", (), ("b",)), Row("a", "", (), ("a", "y", "z"))]
    data = CaptionedImages(images(3), rows)
    _, numbers = retrieval.unique([text for row in rows for text in row.captions])
    owners = torch.arange(3).repeat_interleave(torch.tensor([2, 1, 3]))
    orders = [torch.tensor(order, dtype=torch.float) for order in itertools.permutations(range(5))]
    right = torch.stack([owners, numbers], 1)
    by_text = [recall_at_k(torch.ones(3, 1), order[:, None], right, (1, 2)) for order in orders]
    by_image = [
        recall_at_k(torch.ones(5, 1), torch.tensor(order)[:, None].float(), torch.stack([numbers, owners], 1), (1, 2))
        for order in itertools.permutations(range(3))
    ]
    found = at_chance(retrieval_metrics, data)
    assert found["retrieval_text_R@1"] == (3, pytest.approx(np.mean([each["R@1"] for each in by_text])))
    assert found["retrieval_image_R@1"] == (5, pytest.approx(np.mean([each["R@1"] for each in by_image])))
    assert found["retrieval_image_R@5"] == (5, 1)
    assert at_chance(name_recall, data) == {"R@1": (3, pytest.approx(1 / 2)), "R@5": (3, 1)}
    assert at_chance(zero_shot_metrics, data)["zero_shot_mean_per_class_recall"] == (3, pytest.approx(1 / 2))


def test_zero_shot_equals_a_classifier_asked_by_hand():
    clip, count = make_clip(), 30
    data = CaptionedImages(
        torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        [Row(CLASSES[i % 6], "", (), (CLASSES[i % 6],)) for i in range(count)],
    )
    found = zero_shot_metrics(clip, data, ["a photo of a {}", "{}"])
    classifier = ZeroShotClassifier(clip, CLASSES, ["a photo of a {}", "{}"])
    right = [best[0].label == row.name for best, row in zip(classifier(data.images).top(1), data.rows, strict=True)]
    assert found["zero_shot_top1"] == pytest.approx(np.mean(right))
    assert found["zero_shot_mean_per_class_recall"] == pytest.approx(
        np.mean([np.mean([r for r, row in zip(right, data.rows, strict=True) if row.name == c]) for c in CLASSES])
    )
    assert found["zero_shot_top1_low"] < found["zero_shot_top1"] < found["zero_shot_top1_high"]
    assert found["zero_shot_top5"] >= found["zero_shot_top1"]
    with pytest.raises(ValueError, match="expected images of at least two classes, all 5 are 'cat'"):
        zero_shot_metrics(clip, data.subset(range(0, 30, 6)))


def test_measuring_leaves_the_training_as_it_was():
    objective = ContrastiveObjective(make_clip().train())
    with pytest.raises(KeyError), evaluating(objective) as clip:
        assert clip is objective.clip and not clip.training and not clip.image_encoder.training
        raise KeyError
    assert objective.training and objective.clip.image_encoder.training


# The program


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Training images; and the same classes as a folder each, as a CSV and as a parquet table with numbers."""
    folder = tmp_path_factory.mktemp("sets")
    made = {"train": write_table(folder / "train.parquet", CLASSES, size=32)}
    lines = ["image,text,species"]
    for i, name in enumerate(CLASSES):
        place = folder / "classes" / name.replace(" ", "_")
        place.mkdir(parents=True)
        for j in range(2):
            Image.fromarray(np.full((20, 30, 3), 40 * i + j, np.uint8)).save(place / f"{j}.png")
            lines.append(f"classes/{place.name}/{j}.png,a thing,{name}")
    (folder / "table.csv").write_text("\n".join(lines))
    features = pytest.importorskip("datasets").Features
    import datasets

    features = features({"image": datasets.Value("binary"), "label": datasets.ClassLabel(names=CLASSES)})
    images = [
        (folder / "classes" / name.replace(" ", "_") / f"{j}.png").read_bytes() for name in CLASSES for j in (0, 1)
    ]
    table = pa.table({"image": images, "label": pa.array([i for i in range(6) for _ in range(2)], pa.int64())})
    pq.write_table(table.cast(features.arrow_schema), folder / "numbers.parquet")
    return made | {"folder": folder / "classes", "csv": folder / "table.csv", "parquet": folder / "numbers.parquet"}


@pytest.fixture
def settings(train_clip, sets, tmp_path):
    sizes = {"image_size": 32, "image_width": 32, "image_layers": 1, "text_width": 32, "text_layers": 1}
    small = sizes | {"batch_size": 2, "vocab_size": 600, "context_length": 40, "log_every": 9, "steps": 4, "warmup": 0}
    small |= {"data": [str(sets["train"])], "projection_dim": 16, "output": str(tmp_path)}
    return lambda **options: train_clip.Settings(**{**small, **options})


@pytest.mark.parametrize("kind", ["folder", "csv", "parquet"])
def test_every_layout_of_classes_says_the_same(kind, train_clip, sets, settings):
    label = {"zero_shot_label_column": "species"} if kind == "csv" else {}
    ((every, figures),) = train_clip.load_evaluations(
        settings(zero_shot_data=str(sets[kind]), zero_shot_every=7, **label)
    )
    assert every == 7 and sorted({row.name for row in figures.keywords["data"].rows}) == sorted(CLASSES)
    by_name = {row.name: image for row, image in zip(*_rows_and_images(figures), strict=True)}
    assert {name: int(image[0, 0, 0]) // 40 for name, image in by_name.items()} == {
        c: i for i, c in enumerate(CLASSES)
    }


def _rows_and_images(figures):
    data = figures.keywords["data"]
    return data.rows, data.images


def test_figures_are_logged_on_time_and_choose_the_best(train_clip, sets, settings, tmp_path, capfd):
    options = {"zero_shot_data": str(sets["folder"]), "zero_shot_every": 2, "zero_shot_templates": ["a {}"]}
    options |= {"retrieval_data": str(sets["train"]), "retrieval_every": 3, "keep_best": True}
    train_clip.main(settings(best_metric="zero_shot_top1", **options))
    rows = {row["step"]: row for row in read_log(tmp_path / "log.jsonl")}
    assert [step for step, row in rows.items() if "zero_shot_top1" in row] == [2, 4]
    assert [step for step, row in rows.items() if "retrieval_text_R@1" in row] == [3, 4]  # and when it ends
    with safe_open(tmp_path / "checkpoints" / "best.safetensors", "pt") as best:
        step, value = int(best.metadata()["step"]), float(best.metadata()["metric"])
    assert value == max(row["zero_shot_top1"] for row in rows.values() if "zero_shot_top1" in row)
    assert rows[step]["zero_shot_top1"] == value
    final = zero_shot_metrics(
        CLIP.from_pretrained(tmp_path), CaptionedImages.from_pairs(sets["folder"], 32), templates=["a {}"]
    )
    assert {name: rows[4][name] for name in final} == pytest.approx(final)
    shown = capfd.readouterr().err
    assert f"zero_shot_top1 {final['zero_shot_top1']:.4g}" in shown and "_low" not in shown  # intervals are in the log
    card = (tmp_path / "README.md").read_text()
    assert f"| zero_shot_top1 | {100 * final['zero_shot_top1']:.1f} % |" in card and "_low" not in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"best_metric": "zero_shot_top1"},
            "--keep_best: needs --zero_shot_data, the images that zero_shot_top1 is measured on",
        ),
        ({"best_metric": "retrieval_text_R@1", "zero_shot_data": "x"}, "--keep_best: needs --retrieval_data"),
        (
            {"best_metric": "loss"},
            r"--best_metric: expected one of R@1, R@5, zero_shot_top1, .*retrieval_image_R@10, got 'loss'",
        ),
        ({}, "--keep_best: needs --validation"),
    ],
)
def test_a_choice_by_what_is_not_measured_is_named(options, message, train_clip, settings):
    with pytest.raises(SystemExit, match=message):
        train_clip.main(settings(keep_best=True, **options))
