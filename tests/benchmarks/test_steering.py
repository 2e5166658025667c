"""The steering benchmark: that its prompts and costs are what they say, and that it runs, stops and goes on."""

import json
import subprocess
import sys

import pytest

import clip_guidance as cg
from clip_guidance.data.dataset import Row

pytestmark = pytest.mark.usefixtures("steering")  # its programs can be imported


def rows(count=700):
    """Of names and keywords without a word in common."""
    return [Row(f"n{i}", ["noto", "blob"][i % 2], (f"a{i}", f"b{i}", f"n{i} c{i}")) for i in range(count)]


def test_the_tuning_set_shares_nothing_with_the_report():
    from prompt_sets import SETS, prompt_set

    sets = {name: prompt_set(name, rows(), 500, 10, seed=1) for name in SETS}
    assert {name: len(items) for name, items in sets.items()} == {
        "held-out": 500,
        "pairs": 500,
        "keywords": 500,
        "tuning": 200,
    }
    concepts = {
        name: {word for item in items for word in item.target.split() if word.startswith("n") and word != "noto"}
        for name, items in sets.items()
    }
    assert not concepts["tuning"] & (concepts["held-out"] | concepts["pairs"] | concepts["keywords"])


def test_a_smaller_set_begins_the_larger_one():
    from prompt_sets import SETS, prompt_set

    for name in SETS:
        assert prompt_set(name, rows(), 30, 10, 0) == prompt_set(name, rows(), 60, 10, 0)[:30]


def test_one_of_two_concepts_is_not_enough():
    from prompt_sets import prompt_set

    for item in prompt_set("pairs", rows(), 40, 9, 0):
        first, second = item.target.split(" picture of a ")[1].split(" and a ")
        assert first != second and item.target not in item.others and len(set(item.others)) == 8
        parts = [text.split(" picture of a ")[1].split(" and a ") for text in item.others]
        assert sum(part[0] == first for part in parts) == 4 and sum(part[1] == second for part in parts) == 4


def test_unknown_and_too_small_sets_are_named():
    from prompt_sets import prompt_set

    with pytest.raises(ValueError, match="unknown prompt set 'other'; expected one of held-out, pairs, keywords"):
        prompt_set("other", rows(), 5, 3, 0)
    with pytest.raises(ValueError, match="held-out: expected at least 50 different prompts to choose among, got 20"):
        prompt_set("held-out", rows(20), 20, 50, 0)


@pytest.fixture(scope="module")
def emoji():
    pipe = cg.load_pipeline("emoji")
    pipe.set_progress_bar_config(disable=True)
    return pipe, cg.CLIP.from_pretrained("emoji")


def drawer(emoji):
    from drawing import Drawer

    return Drawer(*emoji, batch_size=2, seed=0)


@pytest.mark.slow
def test_costs_are_counted_as_the_method_implies(emoji):
    from drawing import Method

    prompts = ["a cat", "a dog"]
    _, cost = drawer(emoji).draw(Method("ours", "", steps=3, scale=1.0), prompts, 0)
    assert cost["denoiser"] == 2 * 2 * 3  # two images, each with and without text, three steps
    assert cost["decoder"] == 2 * (3 + 1) and cost["clip"] == 2 * 3 and cost["seconds"] > 0
    _, cost = drawer(emoji).draw(Method("text", "", steps=3, guidance_scale=1.0, best_of=2), prompts, 0)
    assert cost["denoiser"] == 2 * 2 * 3 and cost["decoder"] == 4 and cost["clip"] == 4


@pytest.mark.slow
def test_best_of_keeps_what_the_guide_likes_best(emoji):
    from drawing import Method

    one, four = (drawer(emoji).draw(Method("m", "", steps=2, best_of=n), ["a cat", "a dog"], 0)[0] for n in (1, 4))
    assert (four["guide"] >= one["guide"] - 1e-5).all() and (four["guide"] > one["guide"] + 1e-3).any()


@pytest.mark.slow
def test_an_ascent_begins_with_the_noise_of_the_other_methods(emoji):
    from drawing import Method

    prompts = ["a cat", "a dog"]
    plain, cost = drawer(emoji).draw(Method("text", "", steps=1, guidance_scale=1.0), prompts, 0)
    for steps, learning_rate in ((1, 1e-9), (3, 5.0)):
        ascent = {"ascent": {"steps": steps, "learning_rate": learning_rate}}
        found, cost = drawer(emoji).draw(Method("m", "", steps=1, guidance_scale=1.0, options=ascent), prompts, 0)
        assert cost["denoiser"] == cost["decoder"] == 2 * (steps + 2)  # with each ascent, after the last, and the best
        if steps == 1:
            assert (found["images"].int() - plain["images"].int()).abs().max() <= 1  # where it began
        else:
            assert (found["guide"] > plain["guide"] + 1e-3).all()


@pytest.mark.slow
def test_batches_on_disk_are_not_drawn_again_and_shares_add_up(emoji, tmp_path, monkeypatch):
    from drawing import Method, load_cell
    from prompt_sets import Item

    items = [Item(f"a {name}", f"a {name}", ()) for name in ("cat", "dog", "bus", "tree", "ball")]
    method, whole, parts = Method("text", "", steps=2, guidance_scale=1.0), tmp_path / "whole", tmp_path / "parts"
    assert list(drawer(emoji).draw_all(whole, method, items)) == [2, 2, 1]
    for rank in range(2):
        list(drawer(emoji).draw_all(parts, method, items, slice(rank, None, 2)))
    one, other = (load_cell(drawer(emoji).paths(root, method, items)) for root in (whole, parts))
    assert one.images.shape == (5, 3, 64, 64) and one.images.equal(other.images)
    again = drawer(emoji)
    monkeypatch.setattr(again, "draw", None)  # cannot be called
    assert list(again.draw_all(whole, method, items)) == [2, 2, 1]
    changed = drawer(emoji).paths(whole, Method("text", "", steps=3, guidance_scale=1.0), items)
    assert not any(path.exists() for path in changed)


@pytest.mark.slow
def test_the_program_runs_and_goes_on(root, shared_data, tmp_path):
    options = ["--data", shared_data / "emoji64-val.parquet", "--held_out", shared_data / "emoji64-val.parquet"]
    options += ["--output", tmp_path / "out", "--work", tmp_path / "work", "--count", 8, "--batch_size", 4]
    options += ["--candidates", 5, "--only", "CFG, 3", "CLIP guidance, scale 10"]
    command = [sys.executable, str(root / "benchmarks" / "steering" / "run.py"), *map(str, options)]
    for sets in (["held-out"], ["held-out", "keywords"]):
        done = subprocess.run([*command, "--sets", *sets], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    titles = ["CFG, 3", "CLIP guidance, scale 10"]
    assert [row["title"] for row in report["held-out"]] == ["real images", *titles]
    assert report["held-out"][0]["copied"] == 1  # here the real images are the training images
    assert len(list((tmp_path / "work").rglob("*.safetensors"))) == 8  # two batches a set and method, drawn once
    text = (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "held-out.png").is_file() and all(f"| {title} |" in text for title in titles)
    agreement_leaves_out_what_is_not_whole(root, tmp_path, options)


def agreement_leaves_out_what_is_not_whole(root, tmp_path, options):
    """The program that reads what run.py kept: it draws nothing."""
    for batch in (tmp_path / "work" / "clip-guidance-scale-10").glob("000004-*"):
        batch.unlink()
    kept = sorted((tmp_path / "work").rglob("*.safetensors"))
    command = [sys.executable, str(root / "benchmarks" / "steering" / "agreement.py"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted((tmp_path / "work").rglob("*.safetensors")) == kept
    lines = [line for line in (tmp_path / "out" / "agreement.md").read_text().splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| real images", "| CFG, 3"]


def test_a_split_keeps_its_share_and_depends_on_its_seed():
    from split import chosen

    kept = chosen(90, 2 / 3, 11)
    assert kept == chosen(90, 2 / 3, 11) == sorted(set(kept)) and len(kept) == 60 and set(kept) < set(range(90))
    assert kept != chosen(90, 2 / 3, 12)
