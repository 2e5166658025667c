"""What version 0.1.0 wrote, at commit 9d725cd, still loads and still gives the same values.

The files are in ``tests/saved_before``; its README says how they were made. Only names that users hold are imported
here: these tests must not follow modules that move.
"""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import ClassifierFreeGuidance, ComponentsManager, ModularPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

import clip_guidance as cg
from clip_guidance.cli.main import run
from clip_guidance.guidance import CLIPGuidance

SAVED = Path(__file__).parent / "saved_before"
EXPECTED = json.loads((SAVED / "expected.json").read_text())
CLIPS = ("clip", "clip-resnet-cbow")
PROMPT = "a red apple"
WRONG = 99.0  # a score that nothing computes: where it comes back, the saved one was used


@pytest.fixture(autouse=True)
def saved(tmp_path, monkeypatch):
    """A copy of the saved files as the working folder, since what they name is relative."""
    folder = tmp_path / "saved"
    shutil.copytree(SAVED, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def cli(capsys):
    """Runs the command line in this process; it must succeed. Returns what it printed to stdout and to stderr."""

    def cli(*words):
        with pytest.raises(SystemExit) as end:
            run([str(word) for word in words])
        captured = capsys.readouterr()
        assert not end.value.code, captured.err
        return captured

    return cli


def lines(path):
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual.flatten(), torch.tensor(expected), rtol=0, atol=atol)


# ---------------------------------------------------------------- models


@pytest.mark.parametrize(("name", "absent"), [("pipeline", {}), ("pipeline-cbow", {"unet": None, "vae": None})])
def test_a_pipeline_that_holds_our_text_encoder(name, absent):
    """diffusers finds the class by the module that the index names, which must have been imported with ``towers``."""
    kind = {"pipeline": cg.towers.TransformerTextModel, "pipeline-cbow": cg.towers.CBOWTextModel}[name]
    pipe = StableDiffusionPipeline.from_pretrained(name, **absent)
    assert type(pipe.text_encoder) is kind and type(pipe.tokenizer).__name__ == "CLIPTokenizer"
    close(pipe.encode_prompt(PROMPT, "cpu", 1, False)[0], EXPECTED[name])


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip(name):
    clip, expected = cg.CLIP.from_pretrained(name), EXPECTED[name]
    close(clip.encode_text(PROMPT), expected["text"])
    close(clip.encode_image("images/red.png"), expected["image"])
    assert clip.logit_scale.item() == pytest.approx(expected["logit_scale"])


@pytest.mark.parametrize("name", CLIPS)
def test_the_fingerprint_by_which_saved_files_know_a_clip(name):
    """Index, cache and scores are of no use to a CLIP whose fingerprint has changed."""
    assert cg.CLIP.from_pretrained(name).fingerprint() == EXPECTED[name]["fingerprint"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
def test_an_adapter():
    """peft loads it; the projections and the temperature, which were trained besides, are in ``heads.safetensors``."""
    peft = pytest.importorskip("peft")
    clip = peft.PeftModel.from_pretrained(cg.CLIP.from_pretrained("clip"), "adapter").merge_and_unload()
    assert not clip.load_state_dict(load_file("adapter/heads.safetensors"), strict=False).unexpected_keys
    close(clip.encode_text(PROMPT), EXPECTED["adapter"]["text"])
    close(clip.encode_image("images/red.png"), EXPECTED["adapter"]["image"])


# ---------------------------------------------------------------- guidance


def check_guider(guidance):
    """The guidance in ``modular/guider``, whose config gives every argument a value of its own."""
    assert type(guidance) is CLIPGuidance
    assert guidance.prompt == {"a photo of a cat": -0.5, PROMPT: 1.0} and guidance.scale == 3.0
    assert (guidance.start, guidance.stop, guidance.every, guidance.cap) == (0.1, 0.9, 2, 2.0)
    assert (guidance.mode, guidance.space, guidance.data_variance, guidance.reward.chunk) == ("x0", "image", 0.5, 2)
    cutouts, decoding, inner = guidance.reward.cutouts, guidance.decoding, guidance.guider
    assert (cutouts.count, cutouts.seed, cutouts.smallest) == (3, 4, 0.7)
    assert (cutouts.flip, cutouts.jitter, cutouts.noise) == (False, 0.1, 0.02)
    assert (decoding.resolution, decoding.crop, decoding.checkpoint, decoding.seed) == (0.5, 0.8, True, 3)
    assert decoding.dtype is torch.bfloat16
    assert 1 in (getattr(decoding, name, None) for name in ("pictures", "images"))  # saved as "pictures"
    assert type(inner) is CLIPGuidance and (inner.prompt, inner.scale) == ("a green pear", 2.0)
    assert type(inner.mode).__name__ == "FreeDoM" and inner.mode.rho == 0.2
    assert type(inner.guider) is ClassifierFreeGuidance and inner.guider.guidance_scale == 4.0
    images = torch.linspace(0, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
    close(guidance.reward(images), EXPECTED["guider"]["reward"], atol=1e-4)
    close(inner.reward(images), EXPECTED["guider"]["inner"], atol=1e-4)


def test_a_guider_by_its_config():
    check_guider(CLIPGuidance.from_pretrained("modular", subfolder="guider"))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_a_guider_of_a_modular_pipeline():
    pipe = ModularPipeline.from_pretrained("modular", components_manager=ComponentsManager())
    pipe.load_components(names="guider")
    check_guider(pipe.guider)


@pytest.mark.parametrize("name", sorted(path.name for path in (SAVED / "guiders").iterdir()))
def test_a_guider_with_a_published_method(name):
    saved = json.loads(Path("guiders", name, "guider_config.json").read_text())["mode"]
    mode = CLIPGuidance.from_pretrained(f"guiders/{name}").mode
    assert {"_class_name": type(mode).__name__, **vars(mode)} == saved


# ---------------------------------------------------------------- images: the index, the cache, the record in a PNG


def test_an_index(saved):
    with cg.ImageIndex.open("index", create=False) as index:  # without a CLIP
        assert len(index) == 3 and index.model == "clip" and index.fingerprint == EXPECTED["clip"]["fingerprint"]
    with cg.ImageIndex.open("index", cg.CLIP.from_pretrained("clip"), create=False) as index:
        hits = index.search(PROMPT)
        assert [Path(hit.path).name for hit in hits] == [hit["name"] for hit in EXPECTED["index"]]
        assert [hit.metadata for hit in hits] == [hit["metadata"] for hit in EXPECTED["index"]]
        assert [hit.score for hit in hits] == pytest.approx([hit["score"] for hit in EXPECTED["index"]], abs=1e-5)
        (hit,) = index.search(PROMPT, where="album = first and year >= 2020")
        assert Path(hit.path).name == "red.png"
        changes = index.add(["images"])  # the same bytes elsewhere: their vectors and metadata go with them
        assert len(changes.moved) == 3 and not changes.added and str(saved / "images" / "red.png") in index
        assert index.compact() == 1 and [hit.metadata for hit in index.search(PROMPT)] == [hit.metadata for hit in hits]


def test_a_cache_of_embeddings(cli):
    """Two images exchange their vectors in the cache; then they exchange their scores."""
    path = Path("cache", f"{EXPECTED['clip']['fingerprint']}-float32.sqlite")
    rows = {row["name"]: row["score"] for row in EXPECTED["index"]}
    hashes = lines("scores/scores.jsonl")
    red, blue = ({row["hash"] for row in hashes if row["image"] == f"images/{name}.png"} for name in ("red", "blue"))
    with contextlib.closing(sqlite3.connect(path)) as file, file:
        embeds = dict(file.execute("SELECT hash, embed FROM embeds"))
        for old, new in ((red, blue), (blue, red)):
            file.execute("UPDATE embeds SET embed = ? WHERE hash = ?", (embeds[max(new)], max(old)))
    file.close()
    options = ("--prompt", PROMPT, "--model", "clip", "--definition", "cosine", "--cache", "cache", "--json")
    found = json.loads(cli("score", "images", *options).out)["results"]
    assert {row["image"]: row["score"] for row in found} == pytest.approx(
        {
            "images/red.png": rows["blue.png"],
            "images/green.png": rows["green.png"],
            "images/blue.png": rows["red.png"],
        },
        abs=1e-5,
    )


def test_an_image_that_carries_its_record(cli):
    (row,) = json.loads(cli("generate", "--from", "generated.png", "--output", "again", "--json").out)
    with Image.open("generated.png") as old, Image.open(row["image"]) as new:
        record = json.loads(old.info["clip_guidance"])
        assert row["settings"] == record["settings"] and row["guide"] == record["guide"]
        difference = np.asarray(old.convert("RGB"), np.int16) - np.asarray(new.convert("RGB"), np.int16)
    assert abs(difference).max() <= 2  # bit for bit where it was made; elsewhere up to rounding
    for before, now in zip(record["scores"], row["scores"], strict=True):
        assert {**now, "score": pytest.approx(before["score"], abs=0.1)} == before


def test_the_record_in_an_image_tells_who_steered_it(cli):
    found = json.loads(cli("score", "generated.png", *(w for name in CLIPS for w in ("--model", name)), "--json").out)
    assert [(row["prompt"], row["guided"]) for row in found["results"]] == [(PROMPT, True), (PROMPT, False)]


# ---------------------------------------------------------------- scores


SCORED = [word for name in CLIPS for word in ("--model", name)]
SCORED += [word for name in ("torchmetrics", "hessel", "clip-iqa") for word in ("--definition", name)]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_scores_are_resumed(cli, suffix):
    """Nothing is computed again: a saved score that is wrong stays."""
    path = Path(f"scores/scores.{suffix}")
    before = lines("scores/scores.jsonl")
    if suffix == "parquet":
        table = pq.read_table(path)
        column = [[WRONG, *table["score"].to_pylist()[1:]]]
        pq.write_table(table.set_column(table.column_names.index("score"), "score", column), path)
    else:
        path.write_bytes(path.read_bytes().replace(str(before[0]["score"]).encode(), str(WRONG).encode(), 1))
    options = ("--prompt", PROMPT, *SCORED, "--output", path, "--resume", "--json")
    printed = json.loads(cli("score", "images", *options).out)
    expected = [WRONG, *(row["score"] for row in before[1:])]
    assert [row["score"] for row in printed["results"]] == pytest.approx(expected, abs=1e-4)
    names = [row["definition"].removesuffix(" with positional embedding") for row in before]  # a column of its own now
    assert [row["definition"] for row in printed["results"]] == names


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_scores_are_compared_whatever_their_format(cli, suffix):
    chosen = ("--definition", "torchmetrics", "--model", "clip", "--on", "image", "--resamples", 10)
    found = json.loads(cli("compare", "scores/scores.jsonl", f"scores/scores.{suffix}", *chosen, "--json").out)
    assert found["pairs"] == 3 and all(row["difference"] == 0 for row in found["results"])


def test_a_run_of_scoring_that_was_killed_is_resumed(cli):
    """Two images were scored when it was killed; the wrong score of one of them shows that it is not scored again."""
    with contextlib.closing(sqlite3.connect("unfinished/scores.jsonl.partial-0")) as file, file:
        file.execute("UPDATE rows SET score = ? WHERE image = 'images/blue.png'", (WRONG,))
    file.close()
    options = ("--prompt", PROMPT, "--model", "clip", "--output", "unfinished/scores.jsonl", "--resume")
    cli("score", "images", *options)
    found = {row["image"]: row["score"] for row in lines("unfinished/scores.jsonl")}
    rows = {f"images/{row['name']}": 100 * row["score"] for row in EXPECTED["index"]}
    assert found == pytest.approx({**rows, "images/blue.png": WRONG}, abs=1e-3)
    assert [path.name for path in Path("unfinished").iterdir()] == ["scores.jsonl"]


# ---------------------------------------------------------------- training

TRAINED = {
    "train_clip": "--data data damaged --validation data --streaming True --max_bad_share 0.5 --batch_size 2 "
    "--warmup 1 --image_size 16 --image_tower resnet --resnet_widths 4 --resnet_depths 1 --text_tower cbow "
    "--text_width 4 --projection_dim 4 --vocab_size 530 --context_length 12 --evaluate_every 1 --log_every 1 "
    "--ema_decay 0.5 --keep_best True --random_flip True --steps 5 --save_every 5",
    "train_diffusion": "--data data --phase autoencoder --size 16 --vae_channels 8 --vae_batch_size 2 --warmup 1 "
    "--log_every 1 --vae_steps 4 --save_every 2",
}

# Of the steps taken since then: what moves into a view has the border's values (it was white), and R@1 asks with the
# captions as they are. With the white of then, the losses are those of then.
SINCE = {
    4: {"loss": 0.7103184461593628, "grad_norm": 84.49883270263672, "R@1": 0.5},
    5: {"loss": 0.7949295043945312, "grad_norm": 140.3052215576172, "R@1": 0.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("program", TRAINED)
def test_a_run_of_training_is_resumed(root, program):
    """Two more steps from the checkpoint, with the losses that they had; the log goes on where it ended."""
    command = [sys.executable, str(root / "training" / f"{program}.py"), *TRAINED[program].split()]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}  # the losses are those of a CPU
    done = subprocess.run([*command, "--output", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    log = Path(program, "log.jsonl" if program == "train_clip" else "vae-run/log.jsonl")
    rows = lines(log)
    for row, expected in zip(rows, EXPECTED[program], strict=True):
        assert row.pop("phase") == expected.pop("phase") and row.pop("seconds") > 0
        expected |= SINCE.get(row["step"], {}) if program == "train_clip" else {}
        assert row == pytest.approx(expected, rel=1e-3)
    if program == "train_clip":
        assert len(Path(program, "quarantine.jsonl").read_text().splitlines()) == 1  # it was known before
        assert cg.CLIP.from_pretrained("train_clip/best").encode_text(PROMPT).shape == (1, 4)
