"""``clip-guidance score`` beyond the first steps: many inputs, judges, formats, resuming, several processes."""

import io
import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from clip_guidance.clip import CLIP
from clip_guidance.metrics.job.judge import Judge
from clip_guidance.metrics.registry import score_images


def test_lines_of_standard_input(cli, clip, good, monkeypatch):
    lines = f'{good[0]}\n{{"image": "{good[1]}", "prompt": "a dog"}}\n{{"prompt": "x"}}\n'
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    done = cli("score", "-", "--prompt", "a cat", "--model", clip, "--json")
    assert done.code == 1 and 'failed: {"prompt": "x"}: has no image' in done.err
    expected = score_images(CLIP.from_pretrained(clip), good[:2], "torchmetrics", ["a cat", "a dog"])
    assert [row["score"] for row in done.json["results"]] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.slow
def test_several_models_and_definitions_side_by_side(cli, clip, judge, images, good, tmp_path):
    output = tmp_path / "scores.parquet"
    words = ["--definition", "cosine", "--definition", "clip-iqa:good photo", "--model", clip, "--model", judge]
    done = cli("score", images, "--prompt", "a cat", *words, "--output", output, "--json")
    assert done.code == 1 and "broken.png: is empty" in done.err
    assert [(entry["model"], entry["count"]) for entry in done.json["scores"]] == [
        *[(str(clip), 3)] * 2,
        *[(str(judge), 3)] * 2,
    ]
    expected = score_images(CLIP.from_pretrained(judge), good, "cosine", "a cat")
    assert done.json["scores"][2]["mean"] == pytest.approx(expected.mean().item(), abs=1e-6)
    rows = [row for row in pq.read_table(output).to_pylist() if row["error"] is None]
    assert [row["image"] for row in rows] == [str(path) for path in good for _ in range(4)]
    assert {(row["definition"], row["model"]) for row in rows[:4]} == {
        (entry["definition"], entry["model"]) for entry in done.json["scores"]
    }
    lines = cli("score", images, "--prompt", "a cat", *words).table
    assert lines[0] == ["image", "prompt", "score", "definition", "model", "error"] and len(lines) == 1 + 12 + 1
    assert lines[-1] == [str(images / "broken.png"), "", "", "", "", "is empty (0 bytes)"]


def test_a_score_without_texts_of_its_own_needs_no_prompt(cli, clip, good):
    done = cli("score", good[0], "--definition", "clip-iqa", "--model", clip, "--json")
    assert done.code == 0 and done.json["results"][0]["prompt"] == "" and 0 <= done.json["mean"] <= 1


@pytest.mark.slow
def test_a_table_of_images_alone(cli, clip, images, good, tmp_path):
    table = images / "images.csv"
    table.write_text("image\na.png\nb.png\n")
    done = cli("score", table, "--definition", "clip-iqa", "--model", clip, "--json")
    assert done.code == 0 and [row["image"] for row in done.json["results"]] == [str(path) for path in good[:2]]
    done = cli("score", table, "--prompt", "a cat", "--model", clip, "--json")
    expected = score_images(CLIP.from_pretrained(clip), good[:2], "torchmetrics", "a cat")
    assert [row["score"] for row in done.json["results"]] == pytest.approx(expected.tolist(), abs=1e-4)
    assert cli("score", "--prompts-file", table, "--prompt", "a cat", "--model", clip, "--json").json == done.json
    info = PngInfo()
    info.add_text("clip_guidance", json.dumps({"settings": {"prompt": "a dog"}}))
    Image.new("RGB", (32, 32)).save(good[0], pnginfo=info)
    done = cli("score", table, "--model", clip, "--json")
    assert [row["prompt"] for row in done.json["results"]] == ["a dog"]
    assert done.code == 1 and f"b.png: holds no prompt, and {table}: row 2 has none; give --prompt" in done.err


@pytest.mark.slow
def test_an_image_called_as_standard_input_is_reached_by_its_folder(cli, clip, good, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-").write_bytes(good[0].read_bytes())
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{good[1]}\n"))
    words = ["--prompt", "a cat", "--model", clip, "--json"]
    scores = {name: cli("score", path, *words).json["results"] for name, path in zip("ab", good, strict=False)}
    (by_folder,) = cli("score", "./-", *words).json["results"]
    (of_lines,) = cli("score", "-", *words).json["results"]
    assert (by_folder["image"], by_folder["score"]) == ("-", scores["a"][0]["score"])
    assert of_lines["image"] == str(good[1]) and of_lines["score"] == scores["b"][0]["score"] != by_folder["score"]


@pytest.mark.slow
def test_heads_of_one_name_are_told_apart(cli, clip, good, tmp_path):
    words, width = [], CLIP.from_pretrained(clip).config.projection_dim
    for folder, bias in (("a", 1.0), ("b", 2.0), ("copy of a", 1.0)):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "head.safetensors"
        save_file({"weight": torch.zeros(1, width), "bias": torch.tensor([bias])}, file)
        words += ["--definition", f"aesthetic:{file}"]
    done = cli("score", good[0], *words, "--model", clip, "--json")
    assert done.code == 0 and [row["score"] for row in done.json["results"]] == [1.0, 2.0]
    names = [row["definition"] for row in done.json["results"]]
    assert len(set(names)) == 2 and all(name.startswith("aesthetic:head@") for name in names)
    assert "are there once" not in done.err and all(f"{name} by {clip}" in done.err for name in names)


def test_resume_goes_on_where_it_was(cli, clip, good, tmp_path, monkeypatch):
    output = tmp_path / "scores.jsonl"
    words = ["score", *good, "--prompt", "a cat", "--model", clip, "--output", output, "--batch-size", 1]
    encode, calls = Judge.encode, []

    def interrupted(self, pixel_values):
        calls.append(len(pixel_values))
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return encode(self, pixel_values)

    monkeypatch.setattr(Judge, "encode", interrupted)
    with pytest.raises(RuntimeError, match="out of memory"):
        from clip_guidance.cli.main import run

        run([str(word) for word in words])
    again = cli(*words)
    assert again.code == 2 and "scores of a run that was cut short; --resume goes on with it" in again.err
    done = cli(*words, "--resume", "--json")
    assert done.code == 0 and calls == [1, 1, 1, 1] and len(done.json["results"]) == 3
    assert [path.name for path in tmp_path.glob("scores*")] == ["scores.jsonl"]
    monkeypatch.undo()
    alone = tmp_path / "alone.jsonl"
    assert cli(*words[:-4], "--output", alone, "--batch-size", 1).code == 0
    assert alone.read_bytes() == output.read_bytes()


def test_ctrl_c_writes_what_is_done(cli, clip, good, tmp_path, monkeypatch):
    output, encode, calls = tmp_path / "scores.csv", Judge.encode, []

    def interrupted(self, pixel_values):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, pixel_values)

    monkeypatch.setattr(Judge, "encode", interrupted)
    words = ["score", *good, "--prompt", "a cat", "--model", clip, "--output", output, "--batch-size", 1]
    done = cli(*words)
    assert done.code == 130 and "stopped; what was done is kept" in done.err
    assert done.table[1:] == [["torchmetrics", str(clip), done.table[1][2], "2"]]
    assert cli(*words, "--resume").code == 0 and len(calls) == 4


def test_a_torn_output_is_repaired(cli, clip, good, tmp_path):
    output = tmp_path / "scores.jsonl"
    words = ["score", *good, "--prompt", "a cat", "--model", clip, "--output", output, "--batch-size", 1]
    cli(*words)
    whole = output.read_bytes()
    output.write_bytes(whole[:-20])
    done = cli(*words, "--resume")
    assert done.code == 0 and "scores.jsonl: its last line was cut short" in done.err
    assert output.read_bytes() == whole


def test_long_prompts_are_reported_in_each_row_or_averaged(cli, clip, good):
    words = ["score", *good, "--prompt", "ox " * 50, "--model", clip, "--json"]
    cut = cli(*words)
    assert [(row["tokens"], row["truncated"]) for row in cut.json["results"]] == [(102, True)] * 3
    assert "3 of 3 scores are of a text that was cut" in cut.err
    averaged = cli(*words, "--long-prompts", "chunk-average")
    assert averaged.json["definition"]["definition"] == "torchmetrics+chunk-average"
    assert [row["truncated"] for row in averaged.json["results"]] == [False] * 3 and "cut" not in averaged.err


def test_a_cache_is_filled_once(cli, clip, good, tmp_path, monkeypatch):
    words = ["score", *good, "--model", clip, "--cache", tmp_path / "cache", "--json", "--prompt"]
    first = cli(*words, "a cat").json
    monkeypatch.setattr(Judge, "encode", None)  # is not called any more
    assert cli(*words, "a cat").json == first
    assert cli(*words, "a dog").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["classify", "--labels", "cat,dog", "--top-k", 2],
        ["similar"],
        pytest.param(["similar", "--to", "FIRST"], marks=pytest.mark.slow),
        pytest.param(["similar", "--duplicates", 0.5], marks=pytest.mark.slow),
        ["index", "--index", "INDEX"],
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_what_score_encoded_is_encoded_for_nothing_else(cli, clip, images, good, words, tmp_path, monkeypatch):
    command, *options = [{"FIRST": good[0], "INDEX": tmp_path / "index"}.get(word, word) for word in words]
    cache, model = ["--cache", tmp_path / "cache"], ["--model", clip, "--json"]
    without = cli(command, images, *options, *model)
    shutil.rmtree(tmp_path / "index", ignore_errors=True)
    assert cli("score", images, "--prompt", "a cat", *model, *cache).code == 1  # one is broken
    calls, encode = [], CLIP.image_embeds
    monkeypatch.setattr(CLIP, "image_embeds", lambda self, pixels: calls.append(len(pixels)) or encode(self, pixels))
    cached = cli(command, images, *options, *model, *cache)
    assert calls == [] and cached.code == without.code == 1
    assert numbers_apart(cached.json) == pytest.approx(numbers_apart(without.json), abs=1e-5)
    new = Image.new("RGB", (40, 40), "red")
    new.save(images / "new.png")
    cli(command, images, *options, *model, *cache)
    assert calls == [1]  # the new one alone, which is then known to all
    cli("score", images, "--prompt", "a cat", *model, *cache)
    assert calls == [1]


@pytest.mark.slow
def test_vectors_of_the_cache_are_those_of_the_index(cli, clip, good, tmp_path):
    words = ["--model", clip, "--cache", tmp_path / "cache"]
    cli("score", *good, "--prompt", "a cat", *words)
    for name, options in (("plain", words[:2]), ("cached", words)):
        assert cli("index", *good, "--index", tmp_path / name, *options).code == 0
    plain, cached = (cli("search", good[0], "--index", tmp_path / name, "--json").json for name in ("plain", "cached"))
    assert numbers_apart(plain) == pytest.approx(numbers_apart(cached), abs=1e-5)


def test_an_image_searched_with_is_encoded_once(cli, clip, good, tmp_path, monkeypatch):
    made = ["--model", clip, "--cache", tmp_path / "cache"]
    assert cli("index", *good, "--index", tmp_path / "index", *made).code == 0
    calls, encode = [], CLIP.image_embeds
    monkeypatch.setattr(CLIP, "image_embeds", lambda self, pixels: calls.append(len(pixels)) or encode(self, pixels))
    options = ["--index", tmp_path / "index", "--json"]
    without = cli("search", good[0], *options)
    assert calls == [1]
    cached = cli("search", good[0], *options, *made[2:])
    assert calls == [1]
    assert numbers_apart(cached.json) == pytest.approx(numbers_apart(without.json), abs=1e-5)


def numbers_apart(document):
    """All that a document holds by its place, so that ``approx`` compares its numbers."""
    found = {}

    def walk(place, value):
        parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        if parts is None:
            found[place] = value
        for key, part in parts or ():
            walk(f"{place}/{key}", part)

    walk("", document)
    return found


@pytest.mark.parametrize(
    "words, message",
    [
        (["a.png", "--prompt", "x", "--resume"], "--resume needs the --output"),
        (["--prompts-file", "pairs.txt"], "pairs.txt: expected a .csv, .tsv, .jsonl or .parquet file"),
        (["a.png", "--prompt", "x", "--long-prompts", "shrink"], "--long-prompts"),
        (["a.png", "--definition", "aesthetic:gone.safetensors"], "gone.safetensors"),
    ],
)
def test_wrong_usage_of_score(cli, words, message):
    done = cli("score", *words)
    assert (done.code, done.out) == (2, "") and message in " ".join(done.err.replace("│", " ").split())


def test_an_index_needs_no_cache(cli, tmp_path):
    done = cli("similar", "--index", tmp_path, "--duplicates", 0.9, "--cache", tmp_path)
    said = " ".join(done.err.replace("│", " ").split())
    assert (done.code, done.out) == (2, "") and "--index takes no --cache: the embeddings are in the index" in said


def test_a_foreign_output_is_left_alone_when_resumed(cli, clip, good, tmp_path):
    output = tmp_path / "scores.csv"
    output.write_text("precious,data\n1,2\n")
    done = cli("score", *good, "--prompt", "x", "--model", clip, "--output", output, "--resume")
    assert done.code == 2 and "expected scores as clip-guidance score writes them" in done.err
    assert output.read_text() == "precious,data\n1,2\n"


@pytest.mark.slow
def test_two_processes_write_the_file_of_one(cli, clip, images, tmp_path):
    words = ["score", images, "--prompt", "a cat", "--model", clip, "--batch-size", 1, "--device", "cpu"]
    assert cli(*words, "--output", tmp_path / "one.jsonl").code == 1
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "clip_guidance.cli.main"]
    done = subprocess.run(
        [sys.executable, *launch, *map(str, words), "--output", str(tmp_path / "two.jsonl"), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1 and "broken.png: is empty" in done.stderr, done.stderr  # the corrupt one, named
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    found = json.loads(done.stdout)
    assert len(found["results"]) == 3 and [row["path"] for row in found["failed"]] == [str(images / "broken.png")]
    assert sorted(path.name for path in tmp_path.glob("*.jsonl*")) == ["one.jsonl", "two.jsonl"]


def test_several_processes_need_what_they_can_share(cli, monkeypatch):
    from clip_guidance.metrics.job import processes

    monkeypatch.setattr(processes, "find_processes", lambda device: processes.Processes(0, 2))
    assert "several processes need --output" in cli("score", "a.png", "--prompt", "x").err
    done = cli("score", "-", "--prompt", "x", "--output", "x.csv")
    assert done.code == 2 and "standard input cannot be shared among processes" in done.err


def test_the_files_of_a_run_that_goes_on_are_not_advised_to_be_deleted(cli, clip, good, tmp_path):
    output = tmp_path / "scores.jsonl"
    (tmp_path / "scores.jsonl.partial").write_bytes(b"")
    words = ["score", good[0], "--prompt", "a cat", "--model", clip, "--output", output]
    with FileLock(tmp_path / "scores.jsonl.lock"):
        held = cli(*words)
    assert held.code == 2 and "another run is writing it" in held.err and "delete" not in held.err
    free = cli(*words)
    assert free.code == 2 and f"to begin anew, delete {output.name}.partial*" in free.err
