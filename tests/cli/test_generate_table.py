"""``clip-guidance generate --prompts-file``: batches, resuming, processes, failed rows."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.empty_images import interrupt_image, spoil
from PIL import Image

from clip_guidance.images.load import load_image
from clip_guidance.images.metadata import read_record


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,seed,steps\na cat,1,\na dog,2,\n,3,\na bus,4,1\na pear,5,\n")
    return path


@pytest.fixture
def generate(cli, clip, judge, pipeline, table, tmp_path):
    def generate(*words, path=table, output="out"):
        models = ["--model", pipeline, "--clip", clip, "--judge", judge, "--steps", 2, "--scale", 9]
        return cli("generate", "--prompts-file", path, *models, *words, "--output", tmp_path / output)

    return generate


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_rows_are_drawn_and_bad_ones_named_in_the_table(generate, table, tmp_path):
    done = generate("--batch-size", 2, "--json")
    assert done.code == 1 and done.err.splitlines()[-1] == "images: 4 of 5 done, 1 failed"
    assert f"failed: {table}: row 3: has no prompt" in done.err
    rows = [json.loads(line) for line in (tmp_path / "out" / "images.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["failed"] for row in rows] == [None, None, "has no prompt", None, None]
    names = [f"{row:06d}-{stem}.png" for row, stem in ((1, "a-cat-1"), (2, "a-dog-2"), (4, "a-bus-4"), (5, "a-pear-5"))]
    assert [row["image"] for row in rows if row["image"]] == names
    assert [row["image"] for row in done.json] == [str(tmp_path / "out" / name) for name in names]
    assert sorted(contents(tmp_path / "out")) == [*names, "images.jsonl"]
    assert [rows[place]["settings"]["steps"] for place in (0, 1, 3, 4)] == [2, 2, 1, 2]
    assert [rows[place].get("batch_size", 1) for place in (0, 1, 3, 4)] == [2, 2, 1, 1]
    assert rows[0]["settings"] == read_record(tmp_path / "out" / names[0])["settings"]


@pytest.mark.slow
def test_a_second_start_completes_to_the_same_bytes(generate, tmp_path, monkeypatch):
    generate("--batch-size", 2)
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "000002-a-dog-2.png").unlink()  # one of a batch
    (tmp_path / "out" / "000005-a-pear-5.png").unlink()
    kept = (tmp_path / "out" / "000001-a-cat-1.png").stat().st_mtime_ns
    drawn = spoil(monkeypatch)
    again = generate("--batch-size", 2)
    assert drawn == [[1, 2], [5]] and "note: 2 of 4 images are there already" in again.err
    assert contents(tmp_path / "out") == whole
    assert (tmp_path / "out" / "000001-a-cat-1.png").stat().st_mtime_ns == kept
    assert generate("--batch-size", 2).out == again.out and len(drawn) == 2


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_drawn_and_names_what_is_left(generate, tmp_path, monkeypatch):
    interrupt_image(monkeypatch, seed=2)
    done = generate("--json")
    assert done.code == 130 and len(done.json) == 1 and "images: 1 of 5 done, 4 left" in done.err
    rows = [json.loads(line) for line in (tmp_path / "out" / "images.jsonl").read_text().splitlines()]
    assert [row["failed"] and row["failed"][:14] for row in rows] == [
        None,
        "was not drawn:",
        "has no prompt",
        *["was not drawn:"] * 2,
    ]
    monkeypatch.undo()
    assert generate().code == 1 and len(contents(tmp_path / "out")) == 5


@pytest.mark.slow
def test_an_image_of_a_table_is_drawn_again_from_its_record(generate, cli, tmp_path):
    generate("--batch-size", 2)
    path = tmp_path / "out" / "000002-a-dog-2.png"
    again = cli("generate", "--from", path, "--output", tmp_path / "again", "--json")
    assert again.json[0]["settings"] == read_record(path)["settings"] and "was drawn again" in again.err
    first, second = (np.asarray(load_image(each), np.int16) for each in (path, again.json[0]["image"]))
    assert abs(first - second).max() <= 1


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused(generate, tmp_path):
    generate()
    before = contents(tmp_path / "out")
    for words, message in (
        (["--steps", 3], "000001-a-cat-1.png is there already, drawn with steps 2, now 3; give another folder"),
        (["--best-of", 2], "is there already, chosen among 1 candidates, now 2"),
    ):
        done = generate(*words)
        assert done.code == 2 and message in done.err and len(done.err.splitlines()[-1]) <= 300
    Image.new("RGB", (4, 4)).save(tmp_path / "out" / "000001-a-cat-1.png")
    assert "is there already, and holds no settings" in generate().err
    assert set(contents(tmp_path / "out")) == set(before)


@pytest.mark.slow
def test_each_row_has_images_candidates_and_targets_of_its_own(generate, tmp_path):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "a cat", "clip_image": "red.png", "method": "mpgd"},
        {"prompt": "a dog", "width": 65, "height": 32},
    ]
    rows += [{"prompt": "a bus", "clip_image": "gone.png"}, {"prompt": "a pear", "width": 32, "height": 16}]
    path.write_text("\n".join(map(json.dumps, rows)))
    words = [
        "--num-images",
        2,
        "--best-of",
        3,
        "--keep",
        2,
        "--rank-by",
        "judge",
        "--batch-size",
        3,
        "--seed",
        5,
        "--json",
    ]
    done = generate(*words, path=path)
    assert done.code == 1 and "images: 4 of 8 done, 4 failed" in done.err
    assert "row 2: width must be a multiple of" in done.err and "row 3: " in done.err
    assert [row["row"] for row in done.json] == [1] * 4 + [4] * 4
    assert [row["choice"]["first_seed"] for row in done.json] == [5, 5, 8, 8] * 2
    assert [row["choice"]["rank"] for row in done.json] == [1, 2] * 4
    assert done.json[0]["settings"]["clip_images"][0]["path"] == str(tmp_path / "red.png")
    widths = [load_image(row["image"]).width for row in done.json]
    assert widths == [16] * 4 + [32] * 4
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "000001-a-cat-5-2.png").unlink()
    assert generate(*words, path=path).json == done.json and contents(tmp_path / "out") == whole
    assert "chosen by another CLIP or reward" in generate(*words, "--rank-by", "clip", path=path).err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
def test_processes_share_the_rows_and_finish_what_one_left(
    generate, root, clip, judge, pipeline, table, tmp_path, launcher
):
    table.write_text(table.read_text() + "a hat,6,\na car,7,\n")
    alone = generate("--batch-size", 2)
    whole = contents(tmp_path / "out")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "000002-a-dog-2.png").write_bytes(whole["000002-a-dog-2.png"])  # of a node that died
    command = [sys.executable, "-m", launcher]
    own = ["--standalone", "--nproc_per_node", "2"] if "torch" in launcher else ["--cpu", "--num_processes", "2"]
    command += [
        *own,
        "-m",
        "clip_guidance.cli.main",
        "generate",
        "--prompts-file",
        table,
        "--steps",
        "2",
        "--scale",
        "9",
    ]
    command += ["--batch-size", "2", "--device", "cpu", "--model", pipeline, "--clip", clip, "--judge", judge]
    words = [str(word) for word in [*command, "--output", tmp_path / "shared"]]
    done = subprocess.run(words, capture_output=True, text=True, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert "images: 6 of 7 done, 1 failed" in done.stderr, done.stderr
    assert done.returncode and contents(tmp_path / "shared") == whole
    assert [line.rpartition("/")[2] for line in done.stdout.splitlines()] == [
        line.rpartition("/")[2] for line in alone.out.splitlines()
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a cat"], "give --prompts-file or --prompt"),
        (["--method", "dsp"], "method must be one of dps, lgd-mc, freedom, mpgd, universal, tfg, tilt, got 'dsp'"),
        (["--method", "dps", "--mode", "x0"], "give a mode or a method, got x0 and dps"),
        (["--batch-size", 0], "Invalid value for '--batch-size'"),
        (["--width", 3], "Invalid value for '--width'"),
    ],
)
def test_what_makes_no_sense_is_named_before_anything_is_drawn(generate, tmp_path, words, message):
    done = generate(*words)
    assert (done.code, done.out) == (2, "") and message in " ".join(done.err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_folders_and_options_that_do_nothing_are_named(cli, generate, table, tmp_path):
    (tmp_path / "file").touch()
    done = generate(output="file")
    assert (
        done.code == 2 and f"--output {tmp_path}/file: the folder cannot be made (a file is in its place)" in done.err
    )
    done = cli("generate", "--prompt", "a cat", "--batch-size", 2, "--output", tmp_path / "out")
    assert done.code == 2 and "--batch-size is for the images of --prompts-file" in done.err
    done = generate(path=tmp_path / "gone.csv")
    assert done.code == 2 and "gone.csv" in done.err and len(done.err.splitlines()) == 1
