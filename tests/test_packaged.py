"""The packaged models: they load, fit the budget, know their images, and the pipelines run on them."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel

import clip_guidance as cg
from clip_guidance.clip.hub import PACKAGED
from clip_guidance.data.dataset import CaptionedImages
from clip_guidance.guidance import CLIPGuidance
from clip_guidance.guidance.modes.noisy import Noisy
from clip_guidance.metrics.retrieval import recall_at_k, unique
from clip_guidance.towers import CBOWTextModel, ResNetModel, TransformerTextModel, ViTModel
from clip_guidance.training.diffusion.noisy_tower import HeldOutRecall

PROMPT = "a fluent 3d picture of a red apple"


def test_weights_fit_the_budget_and_every_model_has_a_card():
    assert sum(path.stat().st_size for path in PACKAGED.rglob("*.safetensors")) <= 64e6
    for folder in filter(Path.is_dir, PACKAGED.iterdir()):
        card = (folder / "README.md").read_text()
        for needed in ("## Data", "## Figures", "## Limits", "Noto", "CC BY 4.0", "parameters"):
            assert needed in card, f"{folder.name}: its card lacks {needed}"


def test_the_towers_are_those_promised():
    clip, judge = cg.CLIP.from_pretrained("emoji"), cg.CLIP.from_pretrained("emoji-judge")
    assert isinstance(clip.image_encoder, ViTModel) and isinstance(clip.text_encoder, TransformerTextModel)
    assert isinstance(judge.image_encoder, ResNetModel) and isinstance(judge.text_encoder, CBOWTextModel)
    assert clip.fingerprint() != judge.fingerprint()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emoji", "emoji-judge"])
def test_they_know_images_they_never_saw(name, shared_data):
    clip = cg.CLIP.from_pretrained(name)
    data = CaptionedImages.from_parquet(shared_data / "emoji64-val.parquet")
    names, targets = unique([row.name for row in data.rows])
    texts = [f"a picture of a {name}" for name in names]
    found = recall_at_k(clip.encode_image(data.images), clip.encode_text(texts), targets)
    assert found["R@1"] > 30 / len(names) and found["R@5"] > 100 / len(names)  # many times chance


@pytest.mark.slow
def test_the_tower_of_noisy_latents_knows_noisy_images_it_never_saw(shared_data):
    clip, pipe = cg.CLIP.from_pretrained("emoji"), cg.load_pipeline("emoji")
    tower = Noisy().fitted(pipe, CLIPGuidance(clip, "a red apple").reward).tower
    data = CaptionedImages.from_parquet(shared_data / "emoji64-val.parquet")
    found = HeldOutRecall(clip, pipe.vae, data, torch.device("cpu"))(tower)
    rates = [found[f"R@1_noise_{level:.2f}"] for level in (0.0, 0.5, 0.75, 0.9, 0.97)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 100 / len(data) and rates[-1] > 10 / len(data)  # many times chance


def test_the_pipeline_is_stock_and_conditioned_by_the_clip():
    pipe, clip = cg.load_pipeline("emoji"), cg.CLIP.from_pretrained("emoji")
    assert type(pipe) is StableDiffusionPipeline and type(pipe.text_encoder) is CLIPTextModel
    ids = clip.tokenizer([PROMPT], padding="max_length", return_tensors="pt").input_ids
    ours, stock = clip.text_encoder(ids), pipe.text_encoder(ids)
    torch.testing.assert_close(ours.last_hidden_state, stock.last_hidden_state, rtol=0, atol=1e-5)
    assert pipe.unet.config.sample_size == 16 and pipe.vae_scale_factor == 4


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "noisy", "blend"])
def test_the_reward_rises_with_the_scale(mode):
    pipe, clip = cg.load_pipeline("emoji"), cg.CLIP.from_pretrained("emoji")
    pipe.set_progress_bar_config(disable=True)
    cosines = []
    for scale in (-3.0, 0.0, 3.0):
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
        with cg.CLIPGuidance(clip, PROMPT, scale=scale, mode=mode).attach(pipe):
            images = pipe([""] * 4, num_inference_steps=6, guidance_scale=1.0, generator=generators).images
        cosines.append((clip.encode_image(images) @ clip.encode_text(PROMPT).T).mean().item())
    assert cosines[0] < cosines[1] < cosines[2]


@pytest.mark.slow
def test_a_community_pipeline_only_composes(root, tmp_path):
    from diffusers import DiffusionPipeline

    stock, clip = cg.load_pipeline("emoji"), cg.CLIP.from_pretrained("emoji")
    stock.set_progress_bar_config(disable=True)
    stock.save_pretrained(tmp_path, safe_serialization=True)
    guided = DiffusionPipeline.from_pretrained(
        tmp_path,
        custom_pipeline=str(root / "pipelines" / "clip_guided_stable_diffusion.py"),
        trust_remote_code=True,
        use_safetensors=True,
    )
    guided.set_progress_bar_config(disable=True)

    def draw(pipe, **options):
        generator = torch.Generator().manual_seed(0)
        return pipe(PROMPT, num_inference_steps=2, generator=generator, output_type="np", **options).images[0]

    plain = draw(stock)
    assert (draw(guided, clip=clip, clip_scale=0) == plain).all()
    with cg.CLIPGuidance(clip, "a blue whale", scale=3).attach(stock):
        expected = draw(stock)
    assert (draw(guided, clip=clip, clip_prompt="a blue whale", clip_scale=3) == expected).all()
    assert (expected != plain).any()


def test_configs_name_no_machine():
    for path in PACKAGED.rglob("config.json"):
        config = json.loads(path.read_text())
        assert not Path(config.get("_name_or_path", "")).is_absolute(), path
