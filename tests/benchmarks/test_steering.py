"""The steering benchmark: that its prompts, ranks and costs are what they say, and that it runs, stops and goes on."""

import json
import subprocess
import sys

import pytest
import torch

import clip_guidance as cg
from clip_guidance.data.dataset import CaptionedImages, Row


@pytest.fixture(autouse=True)
def importable(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks" / "steering"))


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


class Embeddings:
    """A CLIP whose texts and images are vectors."""

    def __init__(self, texts):
        self.texts = texts

    def encode_text(self, texts, batch_size=0):
        return torch.stack([self.texts[text] for text in texts])

    def encode_image(self, images):
        return images


def test_ranks_count_ties_against_the_image():
    from judging import Judge
    from prompt_sets import Item

    texts = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0]), "c": torch.tensor([1.0, 0.0])}
    judge = Judge.__new__(Judge)
    judge.clip = Embeddings(texts)
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    items = [Item("", "a", ("b",)), Item("", "a", ("b",)), Item("", "a", ("b", "c"))]
    assert judge.ranks(images, items).tolist() == [1, 2, 3]


def test_the_nearest_image_is_the_nearest():
    from judging import nearest

    training = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    images = torch.cat([training[3:4], torch.randint(0, 256, (3, 3, 4, 4), dtype=torch.uint8)])
    every = ((images[:, None].double() - training.double()) / 255).square().flatten(2).mean(2).sqrt()
    found = nearest(images, training)
    torch.testing.assert_close(found.distance, every.min(1).values.float(), atol=2e-3, rtol=1e-3)
    assert found.number.equal(every.argmin(1)) and found.number[0] == 3


def test_paired_resamples_cancel_what_methods_share():
    from judging import mean_interval

    luck = (torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    gain = mean_interval((luck + 1) - luck)
    assert (gain.low, gain.estimate, gain.high) == pytest.approx((1, 1, 1))
    alone = mean_interval(luck)
    half_width = 1.96 * (luck.var().item() / 200) ** 0.5  # of the normal approximation
    assert alone.high - alone.low == pytest.approx(2 * half_width, rel=0.15)


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


def test_the_figure_shows_what_was_drawn_and_what_the_judge_says():
    import numpy as np
    from figure import Line, band, below, first_wrong

    colours = torch.tensor([[200, 0, 0], [0, 0, 200]], dtype=torch.uint8)
    images = [colour[None, :, None, None].expand(4, 3, 8, 8) for colour in colours]
    lines = [Line(f"m{i}", each, torch.tensor([1.0, 0.0, 1.0, 0.0])) for i, each in enumerate(images)]
    assert first_wrong(lines[0].right, 1) == [1] and first_wrong(lines[0].right, 3) == [1, 3]
    sheet = np.asarray(band(["a noto picture of a cat", "a dog"], [line.of([2, 3]) for line in lines]))
    for colour in colours.tolist():
        assert (sheet == colour).all(2).sum() == 2 * (88 - 12) ** 2  # every image of every method, once
    green = (sheet == (0x2A, 0x9D, 0x3A)).all(2)
    assert green[:, 104 : 104 + 88].any() and not green[:, 104 + 88 :].any()  # the second one is wrong
    both = np.asarray(below(*[band(["a dog"], [line.of([i])]) for i, line in enumerate(lines)]))
    assert all((both == colour).all(2).sum() == (88 - 12) ** 2 for colour in colours.tolist())


def test_copies_stand_below_what_was_drawn():
    import numpy as np
    from copies import sheet

    drawn = torch.stack([torch.full((3, 64, 64), 10 * i, dtype=torch.uint8) for i in range(1, 4)])
    known = drawn + 3
    shown = np.asarray(sheet(drawn, known, ["a dog", "a cat", "an ant"], columns=2))
    for number, image in enumerate(drawn):
        x, top = 32 + number % 2 * 96, number // 2 * shown.shape[0] // 2
        ours, theirs = shown[top + 32, x], shown[top + 64 + 4 + 32, x]
        assert (ours == image[:, 0, 0].numpy()).all() and (theirs == image[:, 0, 0].numpy() + 3).all()


def test_a_split_keeps_its_share_and_depends_on_its_seed():
    from split import chosen

    kept = chosen(90, 2 / 3, 11)
    assert kept == chosen(90, 2 / 3, 11) == sorted(set(kept)) and len(kept) == 60 and set(kept) < set(range(90))
    assert kept != chosen(90, 2 / 3, 12)


def test_a_method_is_compared_with_what_costs_as_much_and_was_named_before():
    """Not with the best of ours: "best of 2" is right more often, and dearer than what is compared."""
    from drawing import Method
    from judging import Judgement
    from report import Result, duels

    from clip_guidance.metrics.statistics import Interval

    def result(family, seconds, right, name=""):
        said = dict(rank=1.0, precision=1.0, recall=1.0, nearest=0.1, copied=0.0, guide=None)
        verdicts = torch.tensor(right, dtype=torch.float64)
        top1 = Interval(verdicts.mean().item(), 0.0, 1.0)
        said |= dict(kernel_distance=Interval(seconds, 0, 1), named=top1, named_right=1 - verdicts)
        judged = Judgement(count=4, top1=top1, right=verdicts, **said)
        return Result(Method(family, name), judged, {"seconds": seconds})

    results = [
        result("plain", 0.2, [0, 0, 0, 0]),
        result("paper", 1.0, [1, 0, 0, 0]),
        result("ours", 0.5, [1, 1, 0, 0], "1"),
        result("ours", 0.5, [1, 1, 1, 1], "another strength"),
        result("ours", 1.04, [1, 0, 0, 0], "2"),
        result("ours", 2.0, [1, 1, 1, 1], "3"),
    ]
    lines = duels(results, ["ours, 1", "ours, 2", "ours, 3"]).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [(row[0], row[2]) for row in cells] == [
        ("paper", "ours, 2"),
        ("ours, another strength", "ours, 1"),
    ]  # none of ours costs as little as "plain"
    assert cells[0][4].startswith("+0.0 (+0.0 to +0.0)") and cells[1][4].startswith("-50.0") and cells[0][6] == "+0.040"
    assert cells[1][5].startswith("+50.0")  # of all names, here the opposite


def test_a_page_gets_the_table_between_its_markers():
    from readme import BEGIN, END, filled

    interval = {"estimate": 0.5, "low": 0.4, "high": 0.6}
    entry = {"title": "CFG, 3", "top1": interval, "kernel_distance": interval, "rank": 2, "recall": 0.25, "count": 7}
    entry["named"] = None  # of prompts that no real image has
    report = {"held-out": [entry | {"cost": {}}, entry | {"cost": {"seconds": 1.5}, "named": interval}]}
    page = filled(f"before {BEGIN} old {END} after", report)
    assert page.startswith(f"before {BEGIN}\n7 prompts per row") and page.endswith(f"{END} after") and "old" not in page
    assert "| CFG, 3 | 50.0 (40–60) | 50.0 (40–60) | 2.0 | 0.500 (0.400–0.600) | 0.25 | 1.50 |" in page
    assert "| CFG, 3 | 50.0 (40–60) |  | 2.0 |" in page
    assert filled(page, report) == page
    with pytest.raises(ValueError, match="expected one <!-- steering: begin -->.*got 0 and 0"):
        filled("nothing", report)


def test_the_page_says_what_the_report_says(root):
    from readme import filled

    report = json.loads((root / "benchmarks" / "steering" / "results" / "report.json").read_text())
    page = (root / "docs" / "results" / "steering.md").read_text()
    assert filled(page, report) == page


def test_of_all_names_is_the_judges_first_choice_in_the_style():
    """Real images, beside an independent search; a tie with another name is no choice."""
    from judging import Judge
    from prompt_sets import Item

    judge = cg.CLIP.from_pretrained("emoji-judge")
    names, style = ["red apple", "cat face", "rocket", "panda"], "twemoji"
    images = torch.randint(0, 256, (8, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    held_out = CaptionedImages(images, [Row(name, style, ()) for name in names * 2])
    found = Judge(judge, held_out, held_out)
    items = [Item("", "", (), i) for i in range(8)]
    right = found.named(images, items)
    texts = judge.encode_text([f"a {style} picture of a {name}" for name in names])
    best = (judge.encode_image(images) @ texts.T).argmax(1).tolist()
    assert right.tolist() == [float(names[choice] == row.name) for choice, row in zip(best, held_out.rows, strict=True)]
    assert 0 < right.sum() < 8
    assert found.named(images, [*items[:-1], Item("", "", ())]) is None


def test_agreement_counts_what_guide_and_judge_say():
    from agreement import shares

    generator = torch.Generator().manual_seed(0)
    guide, judge, knows = (torch.rand(40, generator=generator).round().double() for _ in range(3))
    both = sum(g == j == 1 for g, j in zip(guide.tolist(), judge.tolist(), strict=True))
    known = sum(k == j == 1 for k, j in zip(knows.tolist(), judge.tolist(), strict=True))
    expected = (
        guide.sum() / 40,
        judge.sum() / 40,
        both / guide.sum(),
        known / knows.sum(),
        (judge.sum() - known) / (40 - knows.sum()),
    )
    found = shares(guide, judge, knows)
    assert [cell.split(" (")[0] for cell in found] == [f"{100 * float(share):.1f}" for share in expected]
    assert shares(guide, judge, torch.ones(40))[-1] == ""  # of none there is no share
