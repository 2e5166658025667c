"""The command line: results on stdout, narration on stderr, exit codes 0, 1, 2 and 130."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clip_guidance.cli import models
from clip_guidance.clip import CLIP
from clip_guidance.metrics.clip_score import clip_score
from clip_guidance.metrics.similarity import image_similarity
from clip_guidance.zero_shot.classifier import ZeroShotClassifier

# classify


def test_classify_names_the_bad_image_and_does_the_others(cli, clip, images, good):
    done = cli("classify", images, "--labels", "cat, dog,apple", "--model", clip, "--batch-size", 2, "--json")
    assert done.code == 1
    assert f"failed: {images}/broken.png: is empty (0 bytes)" in done.err
    assert done.json["failed"] == [{"path": str(images / "broken.png"), "reason": "is empty (0 bytes)"}]
    expected = ZeroShotClassifier(CLIP.from_pretrained(clip), ["cat", "dog", "apple"])(good)
    rows = done.json["results"]
    assert [row["image"] for row in rows] == [str(path) for path in good]
    assert [row["label"] for row in rows] == [top[0].label for top in expected.top()]
    assert [row["prob"] for row in rows] == pytest.approx(expected.probs.max(1).values.tolist(), abs=1e-5)


def test_classify_prints_lines_for_other_programs(cli, clip, good, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\n\nguinea pig, long-haired\n", encoding="utf-8")
    options = ["--template", "a {}", "--template", "the {}", "--top-k", 2, "--model", clip]
    done = cli("classify", *good, "--labels-file", labels, *options)
    assert done.code == 0 and done.err == "3 of 3 done\n"
    header, *rows = done.table
    assert header == ["image", "label", "prob", "error"] and len(rows) == 2 * len(good)
    assert {row[1] for row in rows} == {"cat", "guinea pig, long-haired"}
    assert float(rows[0][2]) + float(rows[1][2]) == pytest.approx(1, abs=1e-3)


def test_ctrl_c_keeps_what_is_done(cli, clip, good, monkeypatch):
    encode, calls = CLIP.image_embeds, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(CLIP, "image_embeds", interrupted)
    done = cli("classify", *good, "--labels", "cat,dog", "--model", clip, "--batch-size", 1, "--json")
    assert done.code == 130 and "stopped; what was done is kept" in done.err
    assert [row["image"] for row in done.json["results"]] == [str(path) for path in good[:2]]


# similar


def test_similar_prints_the_matrix(cli, clip, good):
    done = cli("similar", *good, "--model", clip, "--json")
    expected = image_similarity(CLIP.from_pretrained(clip), good)
    torch.testing.assert_close(torch.tensor(done.json["similarity"]), expected)
    header, *rows = cli("similar", *good, "--model", clip).table
    assert header[1:] == [row[0] for row in rows] == [str(path) for path in good]
    assert rows[1][2] == "1.0000"


def test_similar_ranks_by_a_query(cli, clip, images, good):
    done = cli("similar", images, "--to", good[1], "--model", clip, "--json")
    assert done.code == 1
    results = done.json["results"]
    assert results[0]["image"] == str(good[1]) and results[0]["similarity"] == pytest.approx(1)
    similarities = [row["similarity"] for row in results]
    assert similarities == sorted(similarities, reverse=True) and len(results) == 3


# score


def test_score_writes_its_definition(cli, clip, good, tmp_path):
    output = tmp_path / "scores.jsonl"
    options = ["--definition", "hessel", "--model", clip, "--json", "--output", output]
    done = cli("score", *good, "--prompt", "a cat", *options)
    assert done.code == 0 and "mean: " in done.err and "hessel" in done.err
    expected = clip_score(CLIP.from_pretrained(clip), good, "a cat", "hessel").tolist()
    assert [row["score"] for row in done.json["results"]] == pytest.approx(expected, abs=1e-5)
    assert done.json["mean"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert done.json["definition"]["weight"] == 2.5
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5)
    assert all(row["definition"] == "hessel" and row["fingerprint"] for row in rows)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_score_pairs_from_a_file(cli, clip, images, suffix, tmp_path):
    pairs = [
        ("a.png", "a cat"),
        ("broken.png", "a dog"),
        ("b.png", 'a "red, round"\napple'),
        ("gone.png", "x"),
    ]
    file, output = images / f"pairs.{suffix}", tmp_path / "out.csv"
    with file.open("w", newline="", encoding="utf-8") as handle:
        if suffix == "csv":
            csv.writer(handle).writerows([("image", "prompt"), *pairs])
        else:
            handle.writelines(json.dumps(dict(zip(("image", "prompt"), pair, strict=True))) + "\n" for pair in pairs)
    done = cli("score", "--prompts-file", file, "--model", clip, "--output", output, "--batch-size", 1, "--json")
    assert done.code == 1
    assert "broken.png: is empty" in done.err and "gone.png: no such file" in done.err
    expected = clip_score(
        CLIP.from_pretrained(clip), [images / "a.png", images / "b.png"], [pairs[0][1], pairs[2][1]]
    )
    assert [row["score"] for row in done.json["results"]] == pytest.approx(expected.tolist(), abs=1e-4)
    with output.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["prompt"] for row in rows] == [pairs[0][1], "", pairs[2][1], ""]
    assert [float(row["score"]) for row in rows[::2]] == pytest.approx(expected.tolist(), abs=1e-4)
    assert [row["score"] for row in rows[1::2]] == ["", ""]  # those that failed stand among the others
    assert [row["error"] for row in rows] == ["", "is empty (0 bytes)", "", "no such file"]


@pytest.mark.slow
def test_score_uses_the_stored_prompt_and_warns_of_the_guide(cli, clip, judge, pipeline, good, tmp_path):
    folder = tmp_path / "drawn"
    drawn = ["generate", "--model", pipeline, "--clip", clip, "--steps", 2, "--output", folder, "--prompt"]
    assert cli(*drawn, "a red apple").code == 0
    by_guide = cli("score", folder, "--model", clip, "--json")
    assert by_guide.code == 0 and by_guide.json["results"][0]["prompt"] == "a red apple"
    assert "1 of 1 images were guided or chosen by the very model that scores them" in by_guide.err
    by_judge = cli("score", folder, good[0], "--model", judge, "--json")
    assert by_judge.code == 1 and "guided" not in by_judge.err
    assert "a.png: holds no prompt; give --prompt or --prompts-file" in by_judge.err


@pytest.mark.slow
def test_a_long_prompt_is_cut_with_a_tidy_warning(cli, clip, good):
    for _ in range(2):  # another run tells it again
        done = cli("score", good[0], "--prompt", "ox " * 50_000, "--model", clip)
        assert done.code == 0
        (warning,) = [line for line in done.err.splitlines() if line.startswith("warning:")]
        assert "cut to the context of 40" in warning and "ox ox" in warning and len(warning) < 1200


# models


def test_models_are_described(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    for name, parts in (("tiny", ["clip", "unet"]), ("tiny-judge", ["clip"])):
        for part in parts:
            (tmp_path / name / part).mkdir(parents=True)
            save_file({"a": torch.zeros(3, 4), "b": torch.zeros(1)}, tmp_path / name / part / "model.safetensors")
    (tmp_path / "tiny" / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n\nDraws dots.\n\nMore.\n")
    tiny, tiny_judge = cli("models", "--json").json
    assert (tiny["name"], tiny["kind"], tiny["parameters"]) == ("tiny", "CLIP and pipeline", 26)
    assert (tiny["description"], tiny_judge["description"]) == ("Draws dots.", "")
    assert (tiny_judge["kind"], tiny_judge["parameters"]) == ("CLIP", 13)
    assert tiny_judge["bytes"] == (tmp_path / "tiny-judge" / "clip" / "model.safetensors").stat().st_size
    assert [row[0] for row in cli("models").table] == ["name", "tiny", "tiny-judge"]


# usage


@pytest.mark.parametrize(
    "words,message",
    [
        (["classify", "a.png"], "give --labels or --labels-file"),
        (["classify"], "Missing argument"),
        (["classify", "a.png", "--labels", "x,x", "--model", "CLIP"], "label 'x' is given twice"),
        (
            ["classify", "a.png", "--labels", "x", "--template", "y", "--model", "CLIP"],
            "template 'y' has no {}",
        ),
        (["classify", "a.png", "--labels", "x", "--model", "no/such/model"], "no/such/model"),
        (["classify", "a.png", "--labels", "x", "--model", "CLIP", "--device", "abacus"], "--device abacus"),
        (["classify", "a.png", "--labels", "x", "--model", "CLIP", "--device", "meta"], "--device meta: its tens"),
        (["score"], "give images or --prompts-file"),
        (["score", "a.png", "--prompt", "x", "--output", "x.txt"], "must end in .jsonl or .csv"),
        (
            ["score", "a.png", "--prompt", "x", "--definition", "y", "--model", "CLIP"],
            "no score 'y'; there are hessel",
        ),
        (["similar", "a.png", "--to", "gone.png", "--model", "CLIP"], "gone.png: no such file"),
        (["generate"], "give one of --prompts-file, --from, --prompt"),
        (["generate", "--prompt", "x", "--scheduler", "ddmp"], "scheduler must be one of ddim"),
        (["generate", "--prompt", "x", "--steps", "0"], "--steps"),
        (["generate", "--prompt", "x", "--model", "nowhere"], "nowhere: neither a folder, nor a packaged pipeline"),
        (["generate", "--prompt", "x", "--model", "m.ckpt"], "m.ckpt: a .ckpt checkpoint is a pickle"),
        (["frobnicate"], "No such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_exits_with_2(cli, clip, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = cli(*(clip if word == "CLIP" else word for word in words))
    assert (done.code, done.out) == (2, "")
    assert message in " ".join(done.err.replace("│", " ").split())


def test_existing_scores_are_not_overwritten(cli, good, tmp_path):
    output = tmp_path / "scores.csv"
    output.write_text("precious")
    done = cli("score", *good, "--prompt", "x", "--output", output)
    assert done.code == 2 and "never overwritten" in done.err and output.read_text() == "precious"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"image": "b.png"}', "b.png: holds no prompt, and FILE: row 2 has none; give --prompt"),
        ('{"prompt": "x"}', "FILE: row 2: has no image"),
        ("[1]", "FILE: row 2: expected an object, got list"),
    ],
)
def test_a_bad_row_of_prompts_is_named_and_the_others_are_scored(cli, clip, good, row, problem):
    file = good[0].parent / "pairs.jsonl"
    file.write_text('{"image": "a.png", "prompt": "x"}\n' + row + '\n{"image": "c.png", "prompt": "y"}\n')
    done = cli("score", "--prompts-file", file, "--model", clip, "--json")
    assert done.code == 1 and problem.replace("FILE", str(file)) in done.err
    assert [row["image"] for row in done.json["results"]] == [str(good[0]), str(good[2])]
    assert len(done.json["failed"]) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,prompt\n,x\na.png\n", "pairs.csv: each of its 2 rows is bad; the first is row 1: has no image"),
        ("photograph,prompt\na.png,x\n", "pairs.csv: no column of images found; it has 'photograph', 'prompt'"),
        ("", "pairs.csv: cannot be read as a table (expected a first line with the names of the columns"),
    ],
)
def test_a_table_of_nothing_to_score_is_refused_before_a_model_is_loaded(cli, tmp_path, content, message):
    (tmp_path / "pairs.csv").write_text(content)
    done = cli("score", tmp_path / "pairs.csv", "--model", "is never looked for")
    assert (done.code, done.out) == (2, "") and message in done.err


def test_every_command_has_help_that_imports_nothing_heavy():
    code = """
import sys
from clip_guidance.cli.main import app, run
for words in (["generate", "--help"], ["score", "--help"], ["similar", "-h"], ["train", "--help"], ["--version"]):
    try:
        run(words)
    except SystemExit as exit:
        assert not exit.code
try:
    run(["classify", "a.png"])  # without labels: a wrong request is told at once, too
except SystemExit as exit:
    assert exit.code == 2
assert not {"torch", "diffusers", "transformers"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == 4 and done.stdout.count("clip-guidance 0.") == 1


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "clip_guidance", "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "python -m clip_guidance [OPTIONS] COMMAND" in done.stdout
