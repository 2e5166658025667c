"""``clip-guidance classify`` where the right labels are known: metrics, calibration, abstaining."""

import csv
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def folders(good, tmp_path):
    """The good images in folders called as what they are."""
    for i, path in enumerate(good):
        folder = tmp_path / "classes" / ("cat", "dog")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    return tmp_path / "classes"


def write_labels(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *rows])
    return path


def test_folders_are_labels_and_the_measure(cli, clip, folders):
    done = cli("classify", folders, "--truth", "folders", "--model", clip, "--json")
    assert done.code == 0 and done.json["labels"] == ["cat", "dog"]
    rows, metrics = done.json["results"], done.json["metrics"]
    right = [row["label"] == row["image"].split("/")[-2] for row in rows]
    assert metrics["count"] == len(rows) and metrics["top1"] == pytest.approx(sum(right) / len(right))
    assert sum(map(sum, metrics["confusion"])) == len(rows) and metrics["top5"] is None
    table = cli("classify", folders, "--truth", "folders", "--model", clip)
    assert ["count", str(len(rows))] in table.table


def test_a_table_gives_the_truth_of_some_images(cli, clip, good, tmp_path):
    truth = write_labels(good[0].parent / "truth.csv", [(good[0].name, "cat"), ("gone.png", "dog")])
    done = cli("classify", *good, "--labels", "cat,dog", "--truth", truth, "--model", clip, "--json")
    assert done.code == 0 and done.json["metrics"]["count"] == 1
    wrong = cli("classify", *good, "--labels", "dog,bus", "--truth", truth, "--model", clip)
    assert wrong.code == 2 and "unknown labels ['cat']; the classifier knows dog, bus" in wrong.err
    broken = write_labels(tmp_path / "broken.csv", [])
    broken.write_text("file,label\n")
    wrong = cli("classify", *good, "--labels", "dog", "--truth", broken, "--model", clip)
    assert wrong.code == 2 and "expected the columns image, label; it has ['file', 'label']" in wrong.err


@pytest.mark.slow
def test_below_the_threshold_there_is_no_label(cli, clip, good):
    options = ["--labels", "cat,dog", "--model", clip]
    done = cli("classify", *good, *options, "--threshold", 1, "--json")
    assert all(row["label"] is None and row["prob"] < 1 for row in done.json["results"])
    lines = [line for line in cli("classify", *good, *options, "--threshold", 1).table if line[0].endswith(".png")]
    assert len(lines) == len(done.json["results"]) and all(line[1] == "none" for line in lines)


def test_several_labels_may_hold(cli, clip, good):
    done = cli("classify", *good, "--labels", "cat,dog", "--multi-label", "--top-k", 2, "--model", clip, "--json")
    for row in done.json["results"]:
        assert row["labels"] == [entry["label"] for entry in row["top"] if entry["prob"] >= 0.5]
    assert done.json["threshold"] == 0.5


def test_probabilities_fit_a_labelled_sample(cli, clip, good, tmp_path):
    options = ["--labels", "cat,dog", "--model", clip, "--json"]
    before = cli("classify", *good, *options).json["results"]
    labels = [row["label"] for row in before]
    unsure = min(range(len(before)), key=lambda i: before[i]["prob"])  # its error outweighs none of the others
    labels[unsure] = {"cat": "dog", "dog": "cat"}[labels[unsure]]
    sample = write_labels(tmp_path / "sample.csv", zip(good, labels, strict=True))
    done = cli("classify", *good, *options, "--calibrate", sample)
    assert done.code == 0
    assert done.json["temperature"] != 1 and "calibrated: temperature" in done.err
    assert [row["label"] for row in done.json["results"]] == [row["label"] for row in before]


@pytest.mark.parametrize(
    "rows, message",
    [
        ([("a.png",)], "broken.csv: line 2: expected an image and a label, got 'a.png' and None"),
        ([("a.png", "cat"), ("b.png", " ")], "line 3: expected an image and a label, got 'b.png' and ''"),
        ([("a.png", "cat"), ("a.png", "cat"), ("a.png", "dog")], "line 4: a.png is dog, but was cat before"),
    ],
)
def test_labels_that_are_lacking_or_at_odds_are_told(cli, clip, good, tmp_path, rows, message):
    broken = write_labels(tmp_path / "broken.csv", rows)
    done = cli("classify", *good, "--labels", "cat,dog", "--truth", broken, "--model", clip)
    assert done.code == 2 and message in " ".join(done.err.replace("│", " ").split())


def test_weights_that_are_not_finite_are_named(cli, clip, images, tmp_path):
    folder = shutil.copytree(clip, tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"][3, 5] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    done = cli("classify", images, "--labels", "cat,dog", "--model", folder)
    assert done.code == 1 and "nan" not in done.out
    assert "a.png: its embedding is not finite: the weights visual_projection.weight of" in done.err
