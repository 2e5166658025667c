"""``clip-guidance score --reward``: rewards as judges, beside CLIPs or alone, with their definition on record."""

import json
import shutil

import pytest
import torch
from helpers.factories import save_tiny_clip
from helpers.hub_caches import COMMITS, lay_out
from helpers.scoring_helpers import count_calls
from helpers.tiny_rewards import save_bert, save_image_reward
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

import clip_guidance as cg
from clip_guidance.metrics.job.judge import Judge
from clip_guidance.rewards.load import BERT, OPENAI_L14, REPOSITORIES


@pytest.fixture(scope="module")
def pickscore(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("pickscore"), seed=3)


@pytest.fixture(scope="module")
def imagereward(tmp_path_factory):
    return save_image_reward(tmp_path_factory.mktemp("imagereward"))


@pytest.fixture
def hub(pickscore, imagereward, tmp_path, monkeypatch):
    """The hub's cache, which is all that there is of the hub."""
    cache = tmp_path / "hub"
    lay_out(cache, REPOSITORIES["pickscore"], {"main": pickscore})
    port = tmp_path / "port"
    port.mkdir()
    shutil.copy(imagereward / "model.safetensors", port)
    lay_out(cache, REPOSITORIES["imagereward"], {"main": port})
    lay_out(cache, BERT, {"main": save_bert(tmp_path / "bert")})
    head = tmp_path / "head"
    head.mkdir()
    save_file({"weight": torch.ones(1, 12), "bias": torch.zeros(1)}, head / "model.safetensors")
    lay_out(cache, REPOSITORIES["aesthetic"], {"main": head})
    lay_out(cache, OPENAI_L14, {"main": pickscore})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def rows_of(path, definition):
    return [row for row in map(json.loads, path.read_text().splitlines()) if row["definition"] == definition]


def test_rewards_by_name_score_in_one_pass(cli, hub, images, good, pickscore, imagereward, tmp_path):
    output = tmp_path / "scores.jsonl"
    words = [word for name in ("pickscore", "imagereward", "aesthetic") for word in ("--reward", name)]
    done = cli("score", images, "--prompt", "a red apple", *words, "--output", output, "--json")
    assert done.code == 1 and "broken.png: is empty" in done.err
    assert [(each["definition"], each["count"]) for each in done.json["scores"]] == [
        ("pickscore", 3), ("imagereward", 3), ("aesthetic", 3)
    ]  # fmt: skip
    model, processor = CLIPModel.from_pretrained(pickscore).eval(), CLIPImageProcessorPil.from_pretrained(pickscore)
    tokens = CLIPTokenizer.from_pretrained(pickscore)("a red apple", return_tensors="pt")
    pixels = processor([Image.open(path) for path in good], return_tensors="pt").pixel_values
    with torch.no_grad():
        theirs = model(pixel_values=pixels, **tokens)
    found = rows_of(output, "pickscore")
    assert [row["score"] for row in found] == pytest.approx(theirs.logits_per_image[:, 0].tolist(), abs=1e-4)
    assert [row["score"] for row in rows_of(output, "aesthetic")] == pytest.approx(
        theirs.image_embeds.sum(-1).tolist(), abs=1e-5
    )
    reward = cg.load_reward(imagereward)
    assert [row["score"] for row in rows_of(output, "imagereward")] == pytest.approx(
        reward.score(good, "a red apple").tolist(), abs=1e-5
    )
    about = {"model": REPOSITORIES["pickscore"], "revision": COMMITS["main"], "dtype": "float32"}
    about |= {"fingerprint": cg.CLIP.from_pretrained(pickscore).fingerprint(), "context_length": 40}
    about |= {"preprocessing": "resize 32 bicubic, crop 32", "tokens": len(tokens.input_ids[0]), "truncated": False}
    assert {name: found[0][name] for name in about} == about and found[0]["prompt"] == "a red apple"


@pytest.mark.slow
def test_beside_a_clip_and_in_every_format(cli, clip, good, pickscore, tmp_path):
    words = ["score", *good, "--prompt", "a cat", "--reward", pickscore, "--definition", "cosine", "--model", clip]
    tables = []
    for suffix in ("jsonl", "csv", "parquet"):
        output = tmp_path / f"scores.{suffix}"
        done = cli(*words, "--output", output)
        assert done.code == 0 and done.table[0] == ["definition", "model", "mean", "count"]
        assert [(line[0], line[3]) for line in done.table[1:]] == [("cosine", "3"), ("pickscore", "3")]
        tables.append(done.table)
        again = cli(*words, "--output", output, "--resume", "--report", tmp_path / "page.html")
        assert again.code == 0 and again.table == done.table and "pickscore" in (tmp_path / "page.html").read_text()
        chosen = ("--definition", "pickscore", "--on", "image", "--resamples", 10, "--json")
        same = cli("compare", tmp_path / "scores.jsonl", output, *chosen).json
        assert same["pairs"] == 3 and all(row["difference"] == 0 for row in same["results"])
    assert tables[0] == tables[1] == tables[2]


@pytest.mark.slow
def test_what_is_known_is_not_computed_again(cli, good, pickscore, imagereward, tmp_path, monkeypatch):
    words = ["score", "--prompt", "a cat", "--reward", pickscore, "--reward", imagereward]
    cached = ["--cache", tmp_path / "cache"]
    assert cli(*words, *cached, good[0], good[1], "--output", tmp_path / "a.csv").code == 0
    encoded = count_calls(monkeypatch, Judge, "encode")
    assert cli(*words, *cached, *good, "--output", tmp_path / "a.csv", "--resume").code == 0
    assert [len(pixels) for (pixels,) in encoded] == [1, 1]  # the third image by both
    encoded.clear()
    found = cli(*words, *cached, *good, "--json").json["results"]
    assert [len(pixels) for (pixels,) in encoded] == [3]  # by ImageReward, whose view of an image is no vector
    monkeypatch.undo()
    without = cli(*words, *good, "--json").json["results"]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in without], abs=1e-5)


@pytest.mark.slow
def test_a_repository_and_a_folder_of_the_same_weights_compare(cli, hub, good, pickscore, tmp_path):
    words = ["score", *good, "--prompt", "a cat"]
    for name, reward in (("a", "pickscore"), ("b", shutil.copytree(pickscore, tmp_path / "copy"))):
        assert cli(*words, "--reward", reward, "--output", tmp_path / f"{name}.csv").code == 0
    found = cli("compare", tmp_path / "a.csv", tmp_path / "b.csv", "--on", "image", "--resamples", 10, "--json").json
    assert found["pairs"] == 3
    other = save_tiny_clip(tmp_path / "other", seed=4)
    cli(*words, "--reward", other, "--output", tmp_path / "c.csv")
    refused = cli("compare", tmp_path / "a.csv", tmp_path / "c.csv", "--on", "image")
    assert refused.code == 2 and "were not scored alike: fingerprint" in refused.err


@pytest.mark.slow
def test_a_reward_that_steered_an_image_is_told(cli, good, pickscore, tmp_path):
    reward, info = cg.load_reward(pickscore), PngInfo()
    scores = [{"definition": "pickscore", "guided": True, "fingerprint": reward.fingerprint()}, {"guided": True}, 7]
    info.add_text("clip_guidance", json.dumps({"settings": {"prompt": "a dog"}, "scores": scores, "guide": [1]}))
    Image.new("RGB", (32, 32)).save(good[0], pnginfo=info)
    done = cli("score", good[0], good[1], "--prompt", "a cat", "--reward", pickscore, "--json")
    assert [row["guided"] for row in done.json["results"]] == [True, False]
    assert "1 of 2 images were guided or chosen by the very model that scores them" in done.err


@pytest.mark.slow
def test_long_prompts_are_cut_and_their_rows_say_so(cli, good, pickscore, imagereward):
    words = ["score", *good, "--reward", pickscore, "--reward", imagereward, "--json"]
    done = cli(*words, "--prompt", "red " * 40)
    assert {(row["definition"], row["truncated"]) for row in done.json["results"]} == {
        ("pickscore", True), ("imagereward", True)
    }  # fmt: skip
    assert done.err.count("cut to the context of") == 2  # once by each, whatever the number of images
    refused = cli(*words, "--prompt", "a cat", "--long-prompts", "chunk-average")
    assert refused.code == 2 and "--long-prompts is for the texts of CLIPs" in refused.err


@pytest.mark.slow
def test_precision_and_drafts_are_on_record(cli, good, pickscore):
    words = ["score", *good, "--prompt", "a cat", "--reward", pickscore, "--json"]
    wide, narrow = cli(*words).json, cli(*words, "--dtype", "bfloat16", "--draft").json
    assert (narrow["definition"]["dtype"], narrow["definition"]["decode"]) == ("bfloat16", "draft")
    differences = [a["score"] - b["score"] for a, b in zip(wide["results"], narrow["results"], strict=True)]
    assert 0 < max(map(abs, differences)) < 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reward", "pikscore"], "pikscore: neither a folder"),
        (["--reward", "xswu/HPSv2"], "its weights are pickled; load_reward('hpsv2.1') loads RE-N-Y/hpsv21"),
        (["--definition", "pickscore"], "and it is a reward: --reward, or load_reward"),
    ],
)
def test_what_is_no_reward_is_named(cli, good, words, message):
    done = cli("score", good[0], "--prompt", "a cat", *words)
    assert (done.code, done.out) == (2, "") and message in " ".join(done.err.replace("│", " ").split())


@pytest.mark.slow
def test_a_reward_that_reads_no_prompt_needs_none(cli, hub, good, pickscore):
    done = cli("score", good[0], "--reward", "aesthetic", "--json")
    assert done.code == 0 and done.json["results"][0]["prompt"] == "" and done.json["results"][0]["tokens"] is None
    failed = cli("score", good[0], "--reward", "aesthetic", "--reward", pickscore)
    assert failed.code == 1 and "holds no prompt; give --prompt" in failed.err
