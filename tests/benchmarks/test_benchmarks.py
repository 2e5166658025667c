"""The benchmark programs: that they run, that their numbers hang together, and that what they measure is what it is."""

import importlib.util
import json
import os
import statistics
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from clip_guidance.training.settings import parse_settings


@pytest.fixture(autouse=True)
def importable(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))


def guidance_cost(capsys, device, *options: str) -> list[dict]:
    """The rows that the program prints for the smallest networks."""
    import guidance_cost as program

    argv = ["--size", "tiny", "--device", str(device), "--steps", "1", "--repeats", "2", "--json", *options]
    program.main(parse_settings(program.Settings, argv))
    return json.loads(capsys.readouterr().out)


def check_ratios(rows: list[dict], base: str, seconds_ratio: str, peak_ratio: str | None = None) -> None:
    (by_name,) = [row for row in rows if row["name"] == base]
    for row in rows:
        assert row["seconds"] == statistics.median(row["timed"]) > 0 and len(row["timed"]) == 2
        ratios = [one / other for one, other in zip(row["timed"], by_name["timed"], strict=True)]
        assert row[seconds_ratio] == pytest.approx(statistics.median(ratios))
        if peak_ratio:
            assert row[peak_ratio] == pytest.approx(row["peak_mib"] / by_name["peak_mib"])


@pytest.mark.slow
def test_guidance_cost_without_the_community_pipeline(capsys, device, tmp_path):
    output = tmp_path / "cost.md"
    rows = guidance_cost(capsys, device, "--output", str(output))
    assert [row["name"] for row in rows[:3]] == ["unguided", "x0", "exact"]
    check_ratios(rows, "unguided", "seconds_to_unguided")
    assert {row["seconds_to_community"] for row in rows} == {row["peak_to_community"] for row in rows} == {None}
    peaks = {row["name"]: row["peak_mib"] for row in rows}
    assert 0 < peaks["unguided"] < peaks["x0"] < peaks["exact"]  # what is recorded for a backward stays
    assert peaks["x0, checkpoint"] < peaks["x0"] and peaks["x0, resolution 1/2"] < peaks["x0"]
    assert output.read_text().count("\n| ") == 2 + len(rows)


@pytest.mark.slow
def test_guidance_cost_beside_the_community_pipeline(capsys, device):
    path = os.environ.get("CLIP_GUIDANCE_COMMUNITY")
    if not path:
        pytest.skip("needs CLIP_GUIDANCE_COMMUNITY, the path of diffusers' clip_guided_stable_diffusion.py")
    rows = guidance_cost(capsys, device, "--community", path)
    names = [row["name"] for row in rows]
    assert names[-2:] == ["community pipeline", "community pipeline, frozen"]
    check_ratios(rows, "unguided", "seconds_to_unguided")
    check_ratios(rows, names[-1], "seconds_to_community", "peak_to_community")


@pytest.mark.slow
def test_guidance_cost_of_sdxl(capsys, device, monkeypatch):
    import _cost_models as models

    tiny = models.ARCHITECTURES["tiny"]
    unet = tiny.unet | {
        "cross_attention_dim": 64,  # of both text encoders
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8,  # the pooled text, and six numbers about the image
    }
    second = models.transformer(32, 2, 2, projection_dim=32)
    monkeypatch.setitem(models.ARCHITECTURES, "sdxl", replace(tiny, unet=unet, text_encoder_2=second))
    rows = guidance_cost(capsys, device, "--size", "sdxl", "--dtype", "bfloat16")
    check_ratios(rows, "unguided", "seconds_to_unguided")
    with pytest.raises(SystemExit, match="--community: that pipeline is for Stable Diffusion 1 only"):
        guidance_cost(capsys, device, "--size", "sdxl", "--community", __file__)


def test_guidance_cost_names_a_missing_community_file(capsys, device, tmp_path):
    with pytest.raises(SystemExit, match="--community: expected the path of clip_guided_stable_diffusion.py"):
        guidance_cost(capsys, device, "--community", str(tmp_path / "none.py"))


@pytest.mark.parametrize("size", ["tiny", "emoji"])
def test_both_sides_of_guidance_cost_get_the_same_guide(size, device):
    from _cost_models import make_components

    parts = make_components(size, side=0, clip="", device=str(device), dtype=torch.float32, seed=0)
    side, tokens = parts.feature_extractor.crop_size["height"], parts.pipe.tokenizer.model_max_length
    pixels = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    ids = parts.pipe.tokenizer(["a cat", "an apple"], padding="max_length", max_length=tokens, return_tensors="pt")
    with torch.no_grad():
        theirs = parts.clip_model.get_image_features(pixels).pooler_output
        assert_close(parts.clip.image_embeds(pixels), nn.functional.normalize(theirs), atol=1e-5, rtol=1e-4)
        theirs = parts.clip_model.get_text_features(ids.input_ids.to(device)).pooler_output
        assert_close(parts.clip.text_embeds(ids.input_ids.to(device)), nn.functional.normalize(theirs))


class Denoiser(nn.Module):
    """Stands in for a UNet; what it does is the test's."""

    def __init__(self, work):
        super().__init__()
        self.weight, self.work = nn.Parameter(torch.zeros(1)), work

    def forward(self, sample, timestep):
        return self.work(sample)


def runs_of(denoiser, device):
    def run(steps: int) -> None:
        sample = torch.zeros(2**20, dtype=torch.uint8, device=device)  # before the first step: not counted
        for timestep in range(steps):
            for _ in range(2):  # a second call with the same timestep is the same step
                denoiser(sample, timestep)

    return run


@pytest.mark.slow
def test_step_peak_bytes_counts_what_is_held_at_once(device):
    from _cost_meters import step_peak_bytes

    def work(sample):
        first = torch.empty(4 * 2**20, dtype=torch.uint8, device=sample.device)
        second = torch.empty(2 * 2**20, dtype=torch.uint8, device=sample.device)
        del first, second
        return torch.empty(5 * 2**20, dtype=torch.uint8, device=sample.device)

    denoiser = Denoiser(work).to(device)
    assert step_peak_bytes(denoiser, runs_of(denoiser, device)) == 6 * 2**20


def test_step_seconds_counts_every_call_of_a_step(device):
    from _cost_meters import step_seconds

    def work(sample):
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    denoiser = Denoiser(work).to(device)
    assert 0.04 <= step_seconds(denoiser, runs_of(denoiser, device), steps=3) < 0.06


def test_a_run_that_is_too_short_is_no_measurement(device):
    from _cost_meters import step_seconds

    denoiser = Denoiser(lambda sample: sample).to(device)
    with pytest.raises(RuntimeError, match="expected 4 steps, the denoiser was called at 2 timesteps"):
        step_seconds(denoiser, lambda steps: runs_of(denoiser, device)(2), steps=3)


@pytest.mark.slow
def test_the_losses_of_the_loss_benchmark_are_one(root, tmp_path, monkeypatch):
    """Their gradients agree, and the plain one holds what the tiled one does not."""
    import contrastive_loss as program

    output = tmp_path / "loss.md"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    program.main(parse_settings(program.Settings, ["--sizes", "6144", "--dim", "32", "--output", str(output)]))
    rows = [line.split(" | ") for line in output.read_text().splitlines() if line.startswith("| 6,144")]
    assert [row[1] for row in rows] == ["tiled", "plain", "checkpointed rows"]
    assert all(float(row[6].rstrip(" |")) < 1e-4 for row in rows)
    megabytes = {row[1]: float(row[2].replace(",", "")) for row in rows}
    assert (
        megabytes["plain"] - megabytes["tiled"] > 6144**2 * 4 / 1e6
    )  # at least one matrix of logits, each several tiles
    with pytest.raises(
        SystemExit, match=r"--methods: expected some of tiled, plain, checkpointed rows, got \['fast'\]"
    ):
        program.main(parse_settings(program.Settings, ["--methods", "fast"]))


@pytest.mark.slow
def test_both_sides_of_the_training_benchmark_train_the_same(tmp_path):
    """The same weights and batch give the same loss: the two sides do the same work."""
    import training_step as program

    from clip_guidance.clip import CLIP
    from clip_guidance.clip.image_processor import ImageProcessor
    from clip_guidance.training.objective import ContrastiveObjective

    settings = program.Settings(batch_size=3, steps=3, warmup=1, rounds=1)
    model, data = program.reference(), program.batch(settings)
    clip = CLIP.from_transformers(model, None, ImageProcessor(64))
    loss = ContrastiveObjective(clip)(data["pixel_values"], data["input_ids"])
    assert_close(loss, model(**data, return_loss=True).loss, rtol=1e-5, atol=0)
    assert program.ours(settings, str(tmp_path)) > 0 and program.rate([0.0, 5.0, 6.0, 8.0], settings) == 6 / 3


@pytest.mark.slow
def test_fine_tuning_measures_both_kinds_of_images(shared_data, tmp_path):
    import fine_tuning as program

    output, held_out = tmp_path / "fine.md", shared_data / "emoji64-val.parquet"
    argv = ["--photos", shared_data / "grocery64.parquet", "--emoji", held_out, "--emoji_held_out", held_out]
    argv += ["--output", output, "--steps", 1, "--batch_size", 4, "--limit", 8]
    program.main(parse_settings(program.Settings, list(map(str, argv))))
    rows = [line for line in output.read_text().splitlines() if line.startswith("| ") and "%" not in line]
    names = [row.split(" | ")[0] for row in rows]
    assert names[2:] == ["| as packaged", "| fine-tuned on photographs", "| fine-tuned on photographs and emoji"]
    assert "8 photographs for training and 8 held out" in output.read_text()


def test_shares_have_wilsons_interval():
    from fine_tuning import share

    assert share(5, 10) == "50.0 (23.7–76.3)"  # 1927, as tabulated
    assert share(0, 10) == "0.0 (0.0–27.8)"


@pytest.mark.slow
def test_the_soak_kills_resumes_and_tells_a_difference(shared_data, tmp_path):
    import resume_soak as program

    output = tmp_path / "soak.md"
    argv = ["--data", str(shared_data / "emoji64-val.parquet"), "--output", str(output)]
    argv += ["--kills", "1", "--steps", "12", "--save_every", "2", "--max_seconds_to_kill", "0.05"]
    program.main(parse_settings(program.Settings, argv))
    assert "1 times at random" in output.read_text() and "identical, every bit" in output.read_text()
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, value in ((one, 1.0), (other, 1.0 + 2**-23)):
        (folder / "checkpoints").mkdir(parents=True)
        for name in ("checkpoints/step-2.safetensors", "model.safetensors"):
            save_file({"weight": torch.tensor([value])}, folder / name)
    assert program.differences(one, one) == []
    assert program.differences(one, other) == ["model.safetensors: weight", "step-2.safetensors: weight"]


@pytest.mark.slow
def test_the_engines_of_the_search_benchmark_find_what_is_nearest(tmp_path):
    """Each in processes of its own, the filter included; those that are not installed are left out."""
    import search as program

    engines = [name for name, kind in program.ENGINES.items() if importlib.util.find_spec(kind.needs)]
    assert "ours" in engines
    settings = program.Settings(count=300, dim=16, queries=5, k=4, filter_share=0.1, repeats=1, engines=engines)
    rows = program.measure(settings, tmp_path)
    embeds = program.unit(np.random.default_rng(0), 300, 16)
    cosines = program.unit(np.random.default_rng(1), 5, 16) @ embeds.T
    for count, kind in ((300, "found"), (30, "filtered")):
        nearest = np.argsort(-cosines[:, :count], axis=1)[:, :4].tolist()
        assert [getattr(row, kind) for row in rows] == [nearest] * len(engines)
    assert all(min(row.add_s, row.open_ms, row.one_ms) > 0 and row.same == row.same_filtered == 1 for row in rows)
    with pytest.raises(SystemExit, match=r"--engines: expected some of ours, faiss, milvus, got \['grep'\]"):
        program.main(parse_settings(program.Settings, ["--engines", "grep"]))
