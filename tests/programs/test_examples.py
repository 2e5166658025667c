"""Each example runs on the packaged models and does what it says; what it is given wrongly, the library refuses."""

import csv
import io
import json
import re
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.tiny_rewards import save_image_reward
from PIL import Image

import clip_guidance as cg
from clip_guidance.metrics.job.judge import CLIPJudge

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
APPLE, ROCKET = "a noto picture of an apple", "a noto picture of a rocket"
TWO_STEPS = ("--steps", 2)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example as a program, in this process; returns its exit code and what it printed."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as done:
            code = done.code
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def apple(tmp_path):
    """A red square on white, of the size that the packaged pipeline draws."""
    image = Image.new("RGB", (64, 64), "white")
    image.paste("red", (16, 16, 48, 48))
    image.save(path := tmp_path / "apple.png")
    return path


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


def test_custom_reward(run, tmp_path):
    code, printed = run("custom_reward.py", tmp_path / "out.png", "--prompt", APPLE, "--steps", 1)
    without, steered = numbers(printed)
    assert code == 0 and steered > without
    assert pixels(tmp_path / "out.png").shape == (64, 64, 3)


@pytest.mark.slow
def test_batch_steers_each_image_by_its_own_target(run, tmp_path):
    for name, scale in (("plain", 0), ("steered", 30)):
        jobs = ("--job", APPLE, "a green apple", scale, "--job", ROCKET, "a rocket", 0)
        assert run("batch.py", tmp_path / f"{name}.png", *jobs, *TWO_STEPS)[0] == 0
    plain, steered = pixels(tmp_path / "plain.png"), pixels(tmp_path / "steered.png")
    assert steered.shape == (64, 128, 3)
    assert np.abs(steered - plain)[:, :64].max() > 8 and np.abs(steered - plain)[:, 64:].max() <= 1


@pytest.mark.slow
def test_image_to_image_redraws_all_or_what_the_mask_shows(run, tmp_path, apple):
    mask = Image.new("L", (64, 64), "black")
    mask.paste("white", (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    options = ("--prompt", APPLE, "--target", "a green apple", "--steps", 3, "--strength", 1)
    for name, others in (("all", ()), ("half", ("--mask", tmp_path / "mask.png"))):
        assert run("image_to_image.py", apple, tmp_path / f"{name}.png", *options, *others)[0] == 0
    far = {name: np.abs(pixels(tmp_path / f"{name}.png") - pixels(apple)).mean((0, 2)) for name in ("all", "half")}
    assert far["all"][32:].mean() > 2 * far["half"][40:].mean()  # a margin: the decoder's view is wider than a latent
    assert far["half"][:24].mean() > 2 * far["half"][40:].mean()


@pytest.mark.slow
def test_image_target(run, tmp_path, apple):
    options = ("--prompt", "a noto picture of a cake", "--like", apple, "--unlike", "a worm", "--steps", 6)
    code, printed = run("image_target.py", tmp_path / "out.png", *options)
    without, steered = numbers(printed)
    assert code == 0 and steered > without
    assert (tmp_path / "out.png").is_file()


@pytest.mark.slow
def test_regions_steer_where_they_are(run, tmp_path):
    region = ("--region", "a red apple", 0, 0, 0.5, 1)
    for scale in (0, 60):
        options = ("--prompt", "", *region, "--everywhere", "a noto picture", "--scale", scale, *TWO_STEPS)
        assert run("regions.py", tmp_path / f"{scale}.png", *options)[0] == 0
    changed = np.abs(pixels(tmp_path / "60.png") - pixels(tmp_path / "0.png")).mean((0, 2))
    assert changed[:32].mean() > changed[32:].mean() > 0


@pytest.mark.slow
def test_preference_reward_from_a_folder(run, tmp_path):
    folder = save_image_reward(tmp_path / "reward")
    options = ("--prompt", "a red apple", "--reward", folder, "--candidates", 3, *TWO_STEPS)
    code, printed = run("preference_reward.py", tmp_path / "out.png", *options)
    _, *rewards = numbers(printed)
    assert code == 0 and len(rewards) == 3 and rewards == sorted(rewards, reverse=True)
    rated = cg.load_reward(folder, "a red apple").score([tmp_path / "out.png"], ["a red apple"]).item()
    assert abs(rated - rewards[0]) < 1e-3


@pytest.mark.slow
def test_best_of(run, tmp_path):
    options = ("--prompt", ROCKET, "--candidates", 3, "--batch-size", 2, *TWO_STEPS)
    code, printed = run("best_of.py", tmp_path / "out.png", *options)
    *candidates, mean = printed.splitlines()
    ratings, scores = zip(*map(numbers, candidates), strict=True)
    assert code == 0 and len(ratings) == 3 and list(ratings) == sorted(ratings, reverse=True)
    judge = cg.CLIP.from_pretrained("emoji-judge")
    assert numbers(mean)[0] == scores[0] == round(cg.clip_score(judge, tmp_path / "out.png", ROCKET).item(), 1)


@pytest.mark.slow
def test_modular_draws_as_the_stock_pipeline_does(run, tmp_path):
    code, printed = run("modular.py", tmp_path / "out.png", "--prompt", ROCKET, "--scale", 0, *TWO_STEPS)
    assert code == 0 and "steered at 0 of 2 steps" in printed
    pipe = cg.load_pipeline("emoji")
    call = {"num_inference_steps": 2, "guidance_scale": 3.0, "generator": torch.Generator().manual_seed(0)}
    assert np.abs(np.asarray(pipe(ROCKET, **call).images[0]).astype(int) - pixels(tmp_path / "out.png")).max() <= 1
    assert "steered at 2 of 2 steps" in run("modular.py", tmp_path / "out.png", "--prompt", ROCKET, *TWO_STEPS)[1]


def write_table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "prompt"), *rows])


@pytest.mark.slow
def test_score_nightly_computes_what_is_new_alone(run, tmp_path, apple, monkeypatch):
    table, scores = tmp_path / "images.csv", tmp_path / "scores.jsonl"
    write_table(table, [(apple, "a red square")])
    assert run("score_nightly.py", table, scores)[0] == 0
    first = json.loads(scores.read_text())
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "blue.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    write_table(table, [(apple, "a red square"), ("bad.png", "nothing"), ("blue.png", "a blue square")])
    encoded, encode = [], CLIPJudge.encode
    monkeypatch.setattr(CLIPJudge, "encode", lambda judge, images: encoded.append(len(images)) or encode(judge, images))
    code, printed = run("score_nightly.py", table, scores)
    rows = [json.loads(line) for line in scores.read_text().splitlines()]
    assert code == 1 and "of 2 images" in printed and encoded == [1]
    assert rows[0]["score"] == first["score"]
    failed = {Path(row["image"]).name: row.get("error") for row in rows}
    assert list(failed) == ["apple.png", "bad.png", "blue.png"]
    assert [name for name, reason in failed.items() if reason] == ["bad.png"]


@pytest.mark.slow
def test_service_answers_many_threads_as_it_does_one():
    from fastapi.testclient import TestClient

    client = TestClient(runpy.run_path(str(EXAMPLES / "service.py"))["make_app"](pipelines=2))

    def draw(seed):
        prompt, scale = (APPLE, 10) if seed % 2 else (ROCKET, 0)
        answer = client.get("/draw", params={"prompt": prompt, "seed": seed, "scale": scale, "steps": 2})
        assert answer.status_code == 200, answer.text
        return answer.content

    alone = [draw(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(draw, range(4))) == alone
    assert len(set(alone)) == 4 and Image.open(io.BytesIO(alone[0])).size == (64, 64)

    refused = client.get("/draw", params={"prompt": APPLE, "scale": "nan"})
    assert refused.status_code == 422 and "scale" in refused.json()["detail"]
    refused = client.post("/score", params={"text": "a rocket"}, content=b"no image")
    assert refused.status_code == 422 and "is not an image" in refused.json()["detail"]
    scored = client.post("/score", params={"text": ROCKET}, content=alone[0]).json()["score"]
    judge = cg.CLIP.from_pretrained("emoji-judge")
    assert scored == pytest.approx(cg.clip_score(judge, alone[0], ROCKET).item(), abs=1e-4)


@pytest.mark.slow
def test_steer_and_zero_shot(run, tmp_path):
    sheet = tmp_path / "sheet.png"
    assert run("steer.py", sheet, "--prompts", ROCKET, "--seeds", 2, *TWO_STEPS)[0] == 0
    assert pixels(sheet).shape[1] > pixels(sheet).shape[0]
    printed = run("zero_shot.py", sheet, "--labels", "red apple,rocket", "--model", "emoji-judge")[1]
    assert "red apple" in printed and "rocket" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("batch.py", "out.png", "--job", APPLE, "an apple", "nan"), "scale"),
        (("image_target.py", "out.png", "--prompt", "a cake", "--like", "gone.png"), "gone.png"),
        (("regions.py", "out.png", "--prompt", "", "--region", "an apple", 0.5, 0, 0.2, 1), "left"),
        (("preference_reward.py", "out.png", "--prompt", "a", "--reward", "no-such"), "no-such"),
        (("best_of.py", "out.png", "--prompt", ROCKET, "--candidates", 0), "n must be at least 1"),
        (("modular.py", "out.png", "--prompt", ROCKET, "--clip", "no-such"), "no-such"),
        (("score_nightly.py", "gone.csv", "scores.jsonl"), "gone.csv"),
        (("score_nightly.py", "gone.csv", "scores.txt"), "gone.csv|scores.txt"),
    ],
)
def test_what_is_wrong_is_refused_by_the_library(run, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=message) as error:
        run(*arguments)
    assert len(str(error.value)) <= 300
    assert not (tmp_path / "out.png").exists()


def test_every_example_is_tested_and_in_the_index():
    tests = Path(__file__).read_text(encoding="utf-8")
    index = (EXAMPLES.parent / "docs" / "guides" / "examples.md").read_text(encoding="utf-8")
    for path in (*EXAMPLES.glob("*.py"), *EXAMPLES.glob("notebooks/*.ipynb")):
        assert path.suffix == ".ipynb" or f'"{path.name}"' in tests, f"{path.name} has no test"
        assert f"](../../{path.relative_to(EXAMPLES.parent).as_posix()})" in index, f"{path.name} is not in the index"


def test_cluster_examples_are_valid():
    folder = EXAMPLES / "cluster"
    service, job = yaml.safe_load_all((folder / "score.yaml").read_text(encoding="utf-8"))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    shell, option, command = container["command"]
    assert (shell, option) == ("bash", "-c") and '--node-rank "$JOB_COMPLETION_INDEX"' in command
    assert f"--nnodes {job['spec']['completions']} " in command and job["spec"]["completionMode"] == "Indexed"
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name} and service["metadata"]["name"] == pod["subdomain"]
    assert f"--master-addr {name}-0.{pod['subdomain']} " in command
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    for script in (command, (folder / "torchrun.sbatch").read_text(encoding="utf-8")):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
