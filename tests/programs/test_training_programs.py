"""The training programs as users launch them: a small run of each, resumed, and loaded by diffusers alone."""

import json
import subprocess
import sys

import pytest
import torch
from helpers.tables import write_table

import clip_guidance as cg
from clip_guidance.data.dataset import CaptionedImages
from clip_guidance.training.diffusion.autoencoder import inflated
from clip_guidance.training.diffusion.denoiser import HeldOutError
from clip_guidance.training.log import read_log

pytestmark = pytest.mark.slow

NAMES = ["red apple", "cat", "dog", "bus", "tree", "house", "ball", "fish"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
LAUNCH += ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def launch(root, program: str, *options: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    command = LAUNCH if processes == 1 else [*TORCHRUN, "--nproc_per_node", str(processes)]
    command = [*command, str(root / "training" / program)]
    return subprocess.run([*command, *map(str, options)], capture_output=True, text=True, cwd=root)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("data") / "train.parquet", NAMES, size=32)


@pytest.fixture(scope="module")
def clip_folder(root, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    options = ["--data", data, "--validation", data, "--output", folder, "--batch_size", 4, "--warmup", 2]
    options += ["--image_size", 32, "--image_width", 32, "--image_layers", 1, "--text_width", 32, "--text_layers", 2]
    options += ["--vocab_size", 600, "--context_length", 12, "--save_every", 2, "--evaluate_every", 2, "--log_every", 1]
    done = launch(root, "train_clip.py", *options, "--steps", 2)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "clip_guidance", "train", "clip"]  # the same program, as the wheel has it
    resumed = subprocess.run([*command, *map(str, [*options, "--steps", 4])], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    return folder


def test_train_clip(clip_folder):
    rows = [json.loads(line) for line in (clip_folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]  # the second launch began where the first ended
    assert {"loss", "R@1", "R@5"} <= rows[-1].keys()
    card = (clip_folder / "README.md").read_text()  # of the first launch, which ended after two steps: a card is kept
    assert f"| R@5 | {100 * rows[1]['R@5']:.1f} % |" in card
    clip = cg.CLIP.from_pretrained(clip_folder)
    assert clip.encode_text(NAMES).shape == (8, clip.config.projection_dim)


def test_train_clip_goes_on_from_a_text_tower(root, data, clip_folder, tmp_path):
    options = ["--data", data, data, "--output", tmp_path, "--init_text", clip_folder, "--batch_size", 4]
    options += ["--image_size", 32, "--image_width", 32, "--image_layers", 1, "--patch_size", 4, "--max_noise_std", 0.1]
    options += ["--stem_widths", 8, 16, "--pooling", "mean", "--learning_rate", 0, "--steps", 1]
    done = launch(root, "train_clip.py", *options)
    assert done.returncode == 0, done.stderr
    assert "16 images" in done.stdout  # of both tables
    made, known = cg.CLIP.from_pretrained(tmp_path), cg.CLIP.from_pretrained(clip_folder)
    assert made.config.vision_config.stem_widths == [8, 16] and made.config.vision_config.pooling == "mean"
    torch.testing.assert_close(made.encode_text(NAMES), known.encode_text(NAMES))


def test_train_diffusion_makes_a_stock_pipeline(root, data, clip_folder, tmp_path):
    options = ["--data", data, "--output", tmp_path, "--clip", clip_folder, "--size", 32, "--batch_size", 4]
    options += ["--vae_channels", 8, 8, "--unet_channels", 16, 16, "--vae_steps", 2, "--unet_steps", 2]
    options += ["--latent_channels", 4, "--validation", data]
    options += ["--vae_batch_size", 4, "--save_every", 1, "--log_every", 1, "--sample_every", 2, "--warmup", 1]
    options += ["--evaluate_every", 1, "--unet_dropout", 0.5]
    done = launch(root, "train_diffusion.py", *options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "samples-000002.png").is_file()
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    code = (
        "import sys, torch; from diffusers import DiffusionPipeline; "
        f"pipe = DiffusionPipeline.from_pretrained({str(tmp_path)!r}, use_safetensors=True); "
        "image = pipe('a cat', num_inference_steps=2).images[0]; "
        "assert image.size == (32, 32) and 'clip_guidance' not in sys.modules, image.size"
    )
    alone = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    pipe = cg.load_pipeline(tmp_path)
    latents = pipe.vae.encode(torch.rand(2, 3, 32, 32)).latent_dist.mean
    images = CaptionedImages.load(data, 32).images / 127.5 - 1
    mse = ((pipe.vae(images).sample.clamp(-1, 1) - images) / 2).square().mean()
    assert f"PSNR {-10 * mse.log10().item():.2f} dB on {len(images)} images" in done.stdout
    assert latents.shape == (2, 4, 16, 16) and pipe.vae.config.scaling_factor == 1
    rows = read_log(tmp_path / "unet-run" / "log.jsonl")
    error = HeldOutError(pipe, CaptionedImages.load(data, 32))  # of the average that was saved, without dropout
    assert [row["held_out_loss"] for row in rows][-1] == pytest.approx(error(), rel=1e-3)
    further = tmp_path / "further"
    options = ["--data", data, "--output", further, "--clip", clip_folder, "--size", 32, "--batch_size", 4]
    options += ["--unet_steps", 1, "--learning_rate", 0, "--sample_every", 2, "--init", tmp_path]
    done = launch(root, "train_diffusion.py", *options)
    assert done.returncode == 0, done.stderr
    for part in ("vae", "unet"):
        weights = getattr(cg.load_pipeline(further), part).state_dict()
        assert all(weights[name].equal(value) for name, value in getattr(pipe, part).state_dict().items()), part
    torch.manual_seed(0)
    wide = inflated(pipe.vae, 6)
    wide.save_pretrained(tmp_path / "wide")
    options[options.index(further)] = further = tmp_path / "wider"
    done = launch(root, "train_diffusion.py", *options, "--autoencoder", tmp_path / "wide")
    assert done.returncode == 0, done.stderr
    made = cg.load_pipeline(further)
    assert made.unet.config.in_channels == made.vae.config.latent_channels == 6
    assert all(made.vae.state_dict()[name].equal(value) for name, value in wide.state_dict().items())


def test_a_denoiser_is_aligned_for_a_share_of_the_steps(root, data, clip_folder, tmp_path):
    """By two processes, and resumed while the term counts; what is saved is the UNet alone."""
    options = ["--data", data, "--output", tmp_path, "--clip", clip_folder, "--size", 32, "--batch_size", 2]
    options += ["--vae_channels", 8, 8, "--unet_channels", 16, 32, "--vae_steps", 1, "--vae_batch_size", 2]
    options += [
        "--log_every",
        1,
        "--alignment",
        clip_folder,
        "--alignment_weight",
        2,
        "--warmup",
        1,
        "--random_flip",
        True,
    ]
    for steps, share in ((1, 1), (4, 0.5)):
        done = launch(
            root, "train_diffusion.py", *options, "--unet_steps", steps, "--alignment_share", share, processes=2
        )
        assert done.returncode == 0, done.stderr
    rows = read_log(tmp_path / "unet-run" / "log.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and all(0 < row["far"] < 2 for row in rows)
    weights = [round((row["loss"] - row["error"]) / row["far"], 3) for row in rows]
    assert weights == [2, 2, 0, 0]
    pipe = cg.load_pipeline(tmp_path)
    assert type(pipe.unet).__name__ == "UNet2DConditionModel"
    assert pipe("a cat", num_inference_steps=2).images[0].size == (32, 32)


def test_two_processes_train_what_one_trains(root, data, clip_folder, tmp_path):
    """The same chunks of the same global batch: captions, views and order do not depend on the processes."""
    for folder, processes in (("one", 1), ("two", 2)):
        options = ["--data", data, "--validation", data, "--output", tmp_path / folder, "--init", clip_folder]
        options += ["--batch_size", 8 // processes, "--chunk_size", 2, "--steps", 3, "--warmup", 1]
        options += ["--random_flip", True, "--grayscale_probability", 0.3, "--erasing_probability", 0.3]
        options += ["--max_noise_std", 0.1, "--ema_decay", 0.5, "--keep_best", True]
        options += ["--evaluate_every", 1]
        done = launch(root, "train_clip.py", *options, processes=processes)
        assert done.returncode == 0, done.stderr
    one, two = (read_log(tmp_path / folder / "log.jsonl") for folder in ("one", "two"))
    assert [row["step"] for row in one] == [row["step"] for row in two] == [1, 2, 3]
    for a, b in zip(one, two, strict=True):  # weights are no measure: Adam turns rounding of a zero gradient into steps
        assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-4)
    assert one[0]["loss"] != pytest.approx(one[2]["loss"], rel=1e-3)
    assert cg.CLIP.from_pretrained(tmp_path / "two" / "best").encode_text("a cat").isfinite().all()


def test_unknown_towers_are_refused(root, data, tmp_path):
    wrong = launch(root, "train_clip.py", "--data", data, "--output", tmp_path, "--image_tower", "swin")
    assert wrong.returncode != 0 and "--image_tower: expected one of vit, resnet, got 'swin'" in wrong.stderr
