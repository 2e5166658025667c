"""``compare``: the scores that ``score`` wrote, pair by pair, and a clear no to what cannot be compared."""

import json

import pytest
from helpers.factories import make_clip


def scored(cli, clip, output, pairs, *options):
    """Scores images against prompts and gives the rows."""
    table = output.with_suffix(".pairs.jsonl")
    rows = [{"image": str(image), "prompt": prompt} for image, prompt in pairs]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli("score", "--prompts-file", table, "--model", clip, "--output", output, "--json", *options)
    assert done.code == 0
    return [row["score"] for row in done.json["results"]]


def test_compares_what_score_wrote(cli, clip, good, tmp_path):
    prompts = ["a cat", "a dog", "an apple"]
    a, b = tmp_path / "a.jsonl", tmp_path / "b.csv"
    first = scored(cli, clip, a, zip(good, prompts, strict=True))
    second = scored(cli, clip, b, zip(reversed(good), prompts, strict=True))
    done = cli("compare", a, b, "--json", "--resamples", 200)
    assert done.code == 0
    expected = [y - x for x, y in zip(first, second, strict=True)]
    assert {row["prompt"]: row["difference"] for row in done.json["results"]} == pytest.approx(
        dict(zip(prompts, expected, strict=True)), abs=1e-5
    )
    assert done.json["difference"]["estimate"] == pytest.approx(sum(expected) / 3, abs=1e-5)
    assert done.json["pairs"] == 3 and done.json["definition"]["definition"] == "torchmetrics"
    assert "difference: b - a = " in done.err and "of 3 pairs" in done.err
    header, *rows = cli("compare", a, b).table
    assert header == ["prompt", "a", "b", "difference"]
    assert [float(row[3]) for row in rows] == sorted((float(row[3]) for row in rows), reverse=True)


def test_names_what_does_not_pair(cli, clip, good, tmp_path):
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    scored(cli, clip, a, zip(good, ["a cat", "a dog", "an apple"], strict=True))
    scored(cli, clip, b, zip(good, ["a cat", "a dog", "a boat"], strict=True))
    with b.open("a") as file:
        file.write('{"image": "cut')
    done = cli("compare", a, b, "--json")
    assert done.code == 1 and done.json["pairs"] == 2
    reasons = [(failure["path"], failure["reason"]) for failure in done.json["failed"]]
    assert reasons == [
        (str(a), f"an apple: is not in {b}"),
        (str(b), f"a boat: is not in {a}"),
    ]
    assert f"failed: {a}: an apple: is not in {b}" in done.err
    assert f"warning: {b}: its last line was cut short and is left out" in done.err and f"{a}: its last" not in done.err


def test_images_of_one_prompt_pair_by_name(cli, clip, good, tmp_path):
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for output in (a, b):
        scored(cli, clip, output, [(image, "a cat") for image in good])
    by_prompt = cli("compare", a, b)
    assert by_prompt.code == 2 and "expected at least 2 pairs, got 1" in by_prompt.err
    done = cli("compare", a, b, "--on", "image", "--json")
    assert done.code == 0 and done.json["win_rate"] == {"estimate": 0.5, "low": 0.5, "high": 0.5}
    assert {(row["image"], row["prompt"]) for row in done.json["results"]} == {
        (f"{name}.png", "a cat") for name in "abc"
    }


@pytest.mark.slow
def test_refuses_other_definitions_and_judges(cli, clip, judge, good, tmp_path):
    pairs = list(zip(good, ["a cat", "a dog", "an apple"], strict=True))
    a, b, c = (tmp_path / f"{name}.jsonl" for name in "abc")
    scored(cli, clip, a, pairs)
    scored(cli, clip, b, pairs, "--definition", "cosine")
    scored(cli, judge, c, pairs)
    other_definition, other_judge = cli("compare", a, b), cli("compare", a, c)
    assert (other_definition.code, other_definition.out) == (other_judge.code, other_judge.out) == (2, "")
    assert "were not scored alike: definition 'torchmetrics' and 'cosine'" in other_definition.err
    assert "were not scored alike: fingerprint '" in other_judge.err


def test_of_several_scores_one_is_chosen(cli, clip, good, tmp_path):
    a, b = tmp_path / "a.csv", tmp_path / "b.parquet"
    pairs = list(zip(good, ["a cat", "a dog", "an apple"], strict=True))
    scored(cli, clip, a, pairs, "--definition", "cosine", "--definition", "hessel")
    scored(cli, clip, b, reversed(pairs), "--definition", "hessel", "--definition", "cosine")
    unclear = cli("compare", a, b)
    assert unclear.code == 2 and "several scores are in both: cosine by" in unclear.err
    assert "choose one by its definition and model" in unclear.err
    done = cli("compare", a, b, "--definition", "cosine", "--json")
    assert done.code == 0 and done.json["definition"]["definition"] == "cosine"
    assert done.json["difference"] == {"estimate": 0, "low": 0, "high": 0}


def test_pairs_of_clip_iqa_are_scores_of_their_own(cli, clip, good, tmp_path):
    both, pairs = tmp_path / "both.jsonl", list(zip(good, ["a cat", "a dog", "an apple"], strict=True))
    scored(cli, clip, both, pairs, "--definition", "clip-iqa", "--definition", "clip-iqa:sharpness")
    name = "clip-iqa:sharpness"
    done = cli("compare", both, both, "--definition", name, "--json")
    assert done.code == 0 and done.json["definition"]["positive"] == "Sharp photo."


def test_what_pairs_with_nothing_is_counted_and_the_first_are_named(cli, clip, good, tmp_path):
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    alike = ["a cat", "a dog"]
    scored(cli, clip, a, zip([good[0]] * 42, [*alike, *(f"only {number}" for number in range(40))], strict=True))
    scored(cli, clip, b, zip(good, [*alike, "else"], strict=True))
    done = cli("compare", a, b, "--json", "--resamples", 10)
    assert done.code == 1 and len(done.json["failed"]) == 41  # --json has them all
    said = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert said[:5] == [f"failed: {a}: only {number}: is not in {b}" for number in range(5)]
    assert said[5:] == [
        f"failed: {a}: 35 more like these, 40 in all; --json lists every one",
        f"failed: {b}: else: is not in {a}",
    ]


def test_one_definition_has_one_name_for_judges_of_all_kinds(cli, clip, good, tmp_path):
    resnet = tmp_path / "resnet"
    make_clip("resnet", "cbow").save_pretrained(resnet)
    options = ["--definition", "clip-iqa", "--model", clip, "--model", resnet, "--output", tmp_path / "a.csv"]
    done = cli("score", *good, *options, "--json")
    assert [entry["definition"] for entry in done.json["scores"]] == ["clip-iqa:quality"] * 2
    assert [entry["positional_embedding"] for entry in done.json["scores"]] == [True, False]
    found = cli("compare", tmp_path / "a.csv", tmp_path / "a.csv", "--model", resnet, "--on", "image", "--json")
    assert found.json["definition"]["positional_embedding"] == "False"
