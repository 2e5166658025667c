"""Rewards on a CLIP's embeddings beside transformers' CLIPModel with the same weights, and beside their formulae."""

import pytest
import torch
import torch.nn.functional as F
from helpers.factories import TEXTS, make_clip
from PIL import Image
from transformers import CLIPConfig as TransformersConfig
from transformers import CLIPModel

import clip_guidance as cg
from clip_guidance.clip import CLIP
from clip_guidance.rewards.base import RewardError
from clip_guidance.rewards.clip_rewards import AestheticReward, PreferenceReward


@pytest.fixture
def peer() -> CLIPModel:
    torch.manual_seed(0)
    tokenizer = make_clip().tokenizer
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = TransformersConfig(
        text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=24
    )
    model = CLIPModel(config).eval()
    for parameter in model.parameters():  # the stock initialisation hardly tells images apart
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_pickscore_is_the_logit_and_hps_the_cosine(peer):
    clip = CLIP.from_transformers(peer, make_clip().tokenizer).eval()
    images, prompts = torch.rand(4, 3, 32, 32), TEXTS[:2]
    inputs = clip.tokenizer([prompts[0], prompts[0], prompts[1], prompts[1]], padding=True, return_tensors="pt")
    with torch.no_grad():
        output = peer(pixel_values=images * 2 - 1, **inputs)
    logits, cosines = output.logits_per_image.diagonal(), (output.image_embeds * output.text_embeds).sum(-1)
    pickscore = PreferenceReward("pickscore", clip, prompts)
    hps = PreferenceReward("hpsv2.1", clip, prompts, scaled=False)
    torch.testing.assert_close(pickscore(images), logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hps(images), cosines, rtol=1e-5, atol=1e-6)
    assert hps.score(images, prompts).equal(hps(images))  # a judge without prompts of its own gives the same
    assert PreferenceReward("hpsv2.1", clip, scaled=False).score(images, prompts).equal(hps(images))
    assert logits.std() > 0.01


def test_aesthetic_reads_the_unit_vector():
    clip, images = make_clip(), torch.rand(3, 3, 40, 32)
    weight, bias = torch.randn(24), torch.tensor(5.0)
    reward = AestheticReward(clip, weight, bias)
    images_8 = (images * 255).round().to(torch.uint8)
    embeds = clip.encode_image([Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images_8])
    torch.testing.assert_close(reward(images_8 / 255), embeds @ weight + 5, rtol=0, atol=0.02)  # PIL rounds to 8 bits
    features = clip.visual_projection(clip.image_encoder(clip.image_processor.differentiable(images)).pooler_output)
    torch.testing.assert_close(reward(images), F.normalize(features) @ weight + 5)
    assert reward.score(images, "whatever").equal(reward(images))
    with pytest.raises(RewardError, match="the head reads embeddings of width 7, those of this CLIP have 24"):
        AestheticReward(clip, torch.zeros(7), bias)


def test_grey_images_are_rated_as_colour_images_of_grey():
    reward, grey = PreferenceReward("pickscore", make_clip(), TEXTS[0]), torch.rand(2, 1, 32, 32)
    assert reward(grey).equal(reward(grey.expand(-1, 3, -1, -1)))


@pytest.mark.slow
def test_they_steer_a_pipeline():
    pipe, clip = cg.load_pipeline("emoji"), cg.CLIP.from_pretrained("emoji")
    reward = PreferenceReward("pickscore", clip, "a red apple")
    call = {"num_inference_steps": 3, "output_type": "pt"}
    runs = []
    for scale in (0.0, 10.0):
        with cg.Guidance(reward, scale=scale).attach(pipe):
            generator = torch.Generator().manual_seed(0)
            runs.append(pipe("a noto picture of a rocket", generator=generator, **call).images)
    with torch.no_grad():
        unguided, guided = (reward(image).item() for image in runs)
    assert guided > unguided + 1
