"""``clip-guidance generate``: names, metadata, drawing again, Ctrl-C."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.empty_images import interrupt_image, spoil
from helpers.factories import save_tiny_clip
from PIL import Image

import clip_guidance as cg
from clip_guidance.guidance import CLIPReward
from clip_guidance.rewards import as_judge


@pytest.fixture
def generate(cli, clip, judge, pipeline, tmp_path):
    def generate(*words):
        models = ["--model", pipeline, "--clip", clip, "--judge", judge, "--steps", 2]
        return cli("generate", *(models if "--from" not in words else []), *words, "--output", tmp_path / "out")

    return generate


@pytest.mark.slow
def test_generate_draws_all_prompts_and_seeds(generate, judge, clip, tmp_path):
    done = generate("--prompt", "a cat", "--prompt", "a dog", "--num-images", 2, "--seed", 5, "--scale", 9, "--json")
    assert done.code == 0
    names = [Path(row["image"]).name for row in done.json]
    assert names == ["a-cat-5.png", "a-cat-6.png", "a-dog-5.png", "a-dog-6.png"]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert all(row["settings"]["scale"] == 9 for row in done.json)
    assert [score["model"] for score in done.json[0]["scores"]] == [str(clip), str(judge)]
    (header, *rows) = generate("--prompt", "a cat").table
    assert header == ["image", "prompt", "seed", "calibrated_scale", f"100·cos by {clip}", f"100·cos by {judge}"]
    assert rows[0][1:3] == ["a cat", "0"] and float(rows[0][3]) > 0


@pytest.mark.slow
def test_generate_from_an_image_draws_it_again(generate):
    (first,) = generate("--prompt", "a cat", "--seed", 3, "--scale", 9, "--json").json
    again = generate("--from", first["image"], "--json")
    assert again.json == [first] and "was drawn again bit for bit" in again.err
    (changed,) = generate("--from", first["image"], "--scale", 0, "--json").json
    assert changed["settings"] == {**first["settings"], "scale": 0.0}
    assert changed["image"].endswith("a-cat-3-2.png")
    (other,) = generate("--from", first["image"], "--prompt", "a dog", "--seed", 0, "--json").json
    assert other["settings"] == {**first["settings"], "prompt": "a dog", "seed": 0}


@pytest.mark.slow
def test_generate_from_an_image_finds_the_images_that_it_was_steered_to(generate, tmp_path):
    reference = tmp_path / "reference.png"
    Image.new("RGB", (20, 20), "red").save(reference)
    words = ("--region", "a cat@0,0,0.5,1", "--region", f"file:{reference}@0.5,0,1,1", "--clip-image", reference)
    (first,) = generate("--prompt", "a cat", "--scale", 9, *words, "--json").json
    (file,) = first["settings"]["clip_images"]
    assert file["path"] == str(reference)
    assert first["settings"]["regions"] == [
        {"target": "a cat", "box": [0, 0, 0.5, 1]},
        {"target": file, "box": [0.5, 0, 1, 1]},
    ]
    again = generate("--from", first["image"], "--json")
    assert again.json == [first] and "was drawn again bit for bit" in again.err
    Image.new("RGB", (20, 20), "blue").save(reference)
    changed = generate("--from", first["image"])
    assert changed.code == 1 and "reference.png: is another image than was steered to" in changed.err
    reference.unlink()
    gone = generate("--from", first["image"])
    assert gone.code == 1 and "reference.png: no such file" in gone.err


def test_bad_images_and_regions_are_errors_of_usage(generate):
    for words, message in (
        (("--clip-image", "gone.png"), "Invalid value for '--clip-image': gone.png: no such file"),
        (("--region", "a cat@0,0,2,1"), "Invalid value for '--region': box must be left,top,right,bottom in [0, 1]"),
        (("--region", "a cat"), "Invalid value for '--region': expected TEXT@left,top,right,bottom"),
    ):
        done = generate("--prompt", "a cat", *words)
        assert done.code == 2 and message in done.err


@pytest.mark.slow
def test_generate_tells_when_an_image_came_out_differently(generate):
    (first,) = generate("--prompt", "a cat", "--json").json
    with Image.open(first["image"]) as image:
        image.load()
        text = image.info["clip_guidance"]
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("clip_guidance", text)
    Image.new("RGB", image.size).save(first["image"], pnginfo=info)
    assert "came out differently" in generate("--from", first["image"]).err


def test_generate_keeps_the_images_made_before_ctrl_c(generate, tmp_path, monkeypatch):
    interrupt_image(monkeypatch, seed=1)
    done = generate("--prompt", "a cat", "--num-images", 3, "--json")
    assert done.code == 130 and len(done.json) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a-cat-0.png"]


@pytest.mark.slow
def test_what_cannot_be_drawn_is_named_and_the_others_are_done(generate, tmp_path):
    done = generate("--prompt", " ", "--prompt", "a cat", "--json")
    assert done.code == 1 and len(done.json) == 1
    assert "failed: --prompt ' ': expected a prompt with at least one word" in done.err
    again = generate("--from", done.json[0]["image"], "--from", tmp_path / "gone.png", "--json")
    assert again.code == 1 and again.json == done.json
    assert "gone.png: holds no clip_guidance settings" in again.err
    nothing = generate("--from", tmp_path / "gone.png")
    assert nothing.code == 1 and "gone.png" in nothing.err


@pytest.mark.slow
def test_a_prompt_longer_than_the_pipelines_context_is_reported_without_guidance_too(generate):
    done = generate("--prompt", "ox " * 60, "--scale", 0)
    assert done.code == 0 and "cut to the context of 40" in done.err


@pytest.mark.slow
def test_rewards_steer_and_are_drawn_again(generate, clip, tmp_path):
    reward = save_tiny_clip(tmp_path / "reward", seed=7)
    (plain,) = generate("--prompt", "a cat", "--scale", 0, "--json").json
    words = ["--prompt", "a cat", "--clip-prompt", "a red cat", "--scale", 0, "--reward", f"{reward}=60"]
    (first,) = generate(*words, "--json").json
    assert first["settings"]["rewards"] == [{"name": str(reward), "weight": 60.0}] and first["guide"] is None
    assert Image.open(first["image"]).tobytes() != Image.open(plain["image"]).tobytes()
    loaded, (*_, score) = cg.load_reward(reward), first["scores"]
    assert (score["definition"], score["model"], score["guided"]) == ("pickscore", str(reward), True)
    assert score["fingerprint"] == loaded.fingerprint() and score["prompt"] == "a red cat"
    assert score["score"] == pytest.approx(loaded.score(first["image"], "a red cat").item(), abs=1e-4)
    assert loaded.score([first["image"]], "a red cat") > loaded.score([plain["image"]], "a red cat")
    again = generate("--from", first["image"], "--json")
    assert again.json == [first] and "was drawn again bit for bit" in again.err


def test_a_reward_that_steers_is_on_record(generate, clip):
    (row,) = generate("--prompt", "a cat", "--scale", 0, "--reward", f"{clip}=60", "--json").json
    assert row["settings"]["rewards"] == [{"name": str(clip), "weight": 60.0}] and row["guide"] is None
    assert [(score["definition"], score["guided"]) for score in row["scores"]] == [
        ("torchmetrics", False), ("torchmetrics", False), ("pickscore", True)
    ]  # fmt: skip


@pytest.mark.slow
def test_rewards_and_clip_steer_by_their_weighted_sum(generate, cli, clip, judge, pipeline, tmp_path):
    """The sum of the guidances attached one by one; and a pipeline without a CLIP is steered by rewards alone."""
    rewards = [save_tiny_clip(tmp_path / name, seed=seed) for name, seed in (("one", 7), ("two", 8))]
    words = ["--reward", f"{rewards[0]}=20", "--reward", f"{rewards[1]}=-5"]
    done = generate("--prompt", "a cat", "--scale", 9, *words)
    assert done.table[0][3:] == [
        f"100·cos by {clip}", f"100·cos by {judge}", *(f"pickscore by {reward}" for reward in rewards)
    ]  # fmt: skip
    pipe = cg.load_pipeline(pipeline)
    pipe.set_progress_bar_config(disable=True)
    guides = [cg.CLIPGuidance(cg.CLIP.from_pretrained(clip), "a cat", scale=9.0)]
    guides += [cg.Guidance(cg.load_reward(r, "a cat"), scale=w) for r, w in zip(rewards, (20.0, -5.0), strict=True)]
    with guides[0].attach(pipe), guides[1].attach(pipe), guides[2].attach(pipe):
        generator = torch.Generator().manual_seed(0)
        expected = pipe("a cat", num_inference_steps=2, guidance_scale=3.0, generator=generator).images[0]
    found, expected = (np.asarray(x, np.int16) for x in (Image.open(done.table[1][0]), expected))
    assert abs(found - expected).max() <= 1
    alone = cli("generate", "--prompt", "a cat", "--model", pipeline, "--steps", 2, *words, "--json",
                "--output", tmp_path / "alone", "--report", tmp_path / "page.html")  # fmt: skip
    assert alone.code == 0 and alone.json[0]["settings"]["scale"] == 0 and len(alone.json[0]["scores"]) == 2
    assert "pickscore by" in (tmp_path / "page.html").read_text()
    scored = cli("score", alone.json[0]["image"], "--reward", rewards[0], "--json")
    assert scored.json["results"][0]["guided"] and "guided or chosen by the very model that scores them" in scored.err


@pytest.mark.slow
def test_the_best_candidate_is_kept_and_drawn_again_without_the_others(generate, monkeypatch):
    seeds = spoil(monkeypatch)
    done = generate("--prompt", "a cat", "--scale", 0, "--seed", 3, "--best-of", 2, "--rank-by", "judge", "--json")
    (row,) = done.json
    best, found = row["settings"]["seed"], row["choice"]
    assert done.code == 0 and seeds == [[3], [4]] and Path(row["image"]).name == f"a-cat-{best}.png"
    assert (found["n"], found["first_seed"], found["rank"], found["failed"]) == (2, 3, 1, [])
    again = generate("--from", row["image"], "--json")
    assert seeds == [[3], [4], [best]] and "was drawn again bit for bit" in again.err
    assert again.json[0]["settings"] == row["settings"] and "choice" not in again.json[0]


@pytest.mark.slow
def test_each_image_of_each_prompt_is_chosen_among_candidates_of_its_own(generate, cli, judge, tmp_path):
    words = ["--prompt", "a cat", "--prompt", "a dog", "--scale", 9, "--seed", 5]
    drawn = generate(*words, "--num-images", 6, "--json").json
    page = tmp_path / "page.html"
    search = ["--num-images", 2, "--best-of", 3, "--keep", 2, "--rank-by", "judge", "--report", page]
    kept = generate(*words, *search, "--json").json
    expected = []
    for prompt, first in itertools.product(("a cat", "a dog"), (5, 8)):
        rate = as_judge(CLIPReward(cg.CLIP.from_pretrained(judge), prompt))
        own = {row["settings"]["seed"]: row["image"] for row in drawn if row["settings"]["prompt"] == prompt}
        of_seeds = {seed: rate([own[seed]]).item() for seed in range(first, first + 3)}
        best = sorted(of_seeds, key=of_seeds.get, reverse=True)[:2]
        expected += [(prompt, first, rank, seed, of_seeds[seed], own[seed]) for rank, seed in enumerate(best, 1)]
    for row, (prompt, first, rank, seed, reward, image) in zip(kept, expected, strict=True):
        found = row["choice"]
        assert (row["settings"]["prompt"], row["settings"]["seed"]) == (prompt, seed)
        assert (found["n"], found["first_seed"], found["rank"]) == (3, first, rank)
        assert found["reward"] == pytest.approx(reward, abs=1e-4)
        assert Image.open(row["image"]).tobytes() == Image.open(image).tobytes()
    assert page.read_text().count("2 of 3 candidates: ") == 4
    header, first, *_ = generate(*words, *search).table
    assert header[:5] == ["image", "prompt", "seed", "rank", "reward"] and first[3:5] == ["1", f"{expected[0][4]:.4f}"]
    scored = cli("score", kept[0]["image"], "--model", judge, "--json")
    assert scored.json["results"][0]["guided"] and "guided or chosen by the very model that scores them" in scored.err


@pytest.mark.slow
def test_processes_share_the_candidates(generate, root, clip, judge, pipeline, tmp_path):
    alone = generate("--prompt", "a cat", "--scale", 9, "--best-of", 3, "--keep", 3, "--json")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "clip_guidance.cli.main", "generate", "--prompt", "a cat", "--scale", "9", "--steps", "2"]
    command += ["--json", "--model", pipeline, "--clip", clip, "--judge", judge, "--output", tmp_path / "shared"]
    shared = [*command, "--device", "cpu", "--best-of", "3", "--keep", "3"]
    done = subprocess.run([str(word) for word in shared], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [Path(row["image"]).read_bytes() for row in rows] == [Path(row["image"]).read_bytes() for row in alone.json]
    assert len(rows) == len(list((tmp_path / "shared").iterdir())) == 3
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=root)
    assert done.returncode and "2 processes would draw the same images: they share candidates" in done.stderr


@pytest.mark.slow
def test_particles_are_on_record_and_drawn_again(generate, clip):
    words = ["--prompt", "a cat", "--seed", -1, "--scale", 0, "--steps", 6, "--num-images", 2, "--particles", 3]
    rows = generate(*words, "--json").json
    assert [(row["settings"]["seed"], row["settings"]["particles"]) for row in rows] == [(-1, 3), (2, 3)]
    assert [(row["choice"]["n"], row["choice"]["ranked_by"][0]["model"]) for row in rows] == [(3, str(clip))] * 2
    again = generate("--from", rows[0]["image"], "--json")
    assert again.json == rows[:1] and "was drawn again bit for bit" in again.err
    mixed = generate("--from", rows[0]["image"], "--best-of", 2)
    assert mixed.code == 1 and "give candidates or particles: got 2 candidates of 3 particles each" in mixed.err


@pytest.mark.slow
def test_candidates_that_fail_are_named_and_the_others_ranked(generate, monkeypatch):
    spoil(monkeypatch, 1, 2, 3)
    done = generate("--prompt", "a cat", "--scale", 0, "--num-images", 2, "--best-of", 2, "--keep", 2, "--json")
    assert done.code == 1 and [row["settings"]["seed"] for row in done.json] == [0]
    assert "skipped: the candidate of 'a cat' with seed 1 is of one color, (0, 0, 0)" in done.err
    assert "failed: --prompt 'a cat': the image of 'a cat' (seed 2) has no candidate: all 2 failed" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep", 2], "--keep is for the candidates of --best-of"),
        (["--rank-by", "judge"], "--rank-by is for the candidates of --best-of"),
        (["--best-of", 2, "--keep", 3], "keep must be from 1 to 2, the number of candidates, got 3"),
        (["--best-of", 0], "Invalid value for '--best-of'"),
        (["--best-of", 2, "--rank-by", "pikscore"], "pikscore: neither a folder"),
    ],
)
def test_what_is_no_search_is_named(generate, words, message):
    done = generate("--prompt", "a cat", *words)
    assert (done.code, done.out) == (2, "") and message in " ".join(done.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("reward", "message"),
    [("pickscore=1e9", "weight must be a number from -10,000 to 10,000"), ("pikscore", "pikscore: neither a folder")],
)
def test_what_is_no_reward_is_named(generate, reward, message):
    done = generate("--prompt", "a cat", "--reward", reward)
    assert (done.code, done.out) == (2, "") and message in " ".join(done.err.replace("│", " ").split())
