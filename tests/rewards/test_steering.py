"""Loaded rewards steer: in every mode, several prompts at once, and with towers in half precision."""

import pytest
import torch
from helpers.factories import make_clip, make_pipeline
from helpers.tiny_rewards import bert_tokenizer, image_reward_weights

import clip_guidance as cg
from clip_guidance.guidance import methods
from clip_guidance.guidance.engine.gradient import gradient_at_images
from clip_guidance.rewards import PromptReward
from clip_guidance.rewards.clip_rewards import AestheticReward, PreferenceReward
from clip_guidance.rewards.image_reward import ImageReward

MODES = ["x0", "exact", methods.DPS(), methods.LGDMC(), methods.FreeDoM(), methods.MPGD(), methods.TFG()]
MODES += [methods.UniversalGuidance(), methods.Tilt(2)]
PROMPTS = ["a red apple", "a rocket"]


def make_reward(kind: str, folder) -> PromptReward:
    if kind == "imagereward":
        return ImageReward.from_weights(image_reward_weights(), bert_tokenizer(folder), PROMPTS)
    clip = make_clip()
    if kind == "aesthetic":
        return AestheticReward(clip, torch.linspace(-1, 1, 24), torch.tensor(5.0))
    return PreferenceReward(kind, clip, PROMPTS, scaled=kind == "pickscore")


def gradient(reward, images, weight=1.0):
    return gradient_at_images(cg.WeightedRewards([(weight, reward)]), images.clone()).gradient


@pytest.mark.parametrize("kind", ["pickscore", "imagereward", *(pytest.param(k, marks=pytest.mark.slow)
                                                               for k in ("hpsv2.1", "aesthetic"))])  # fmt: skip
def test_half_precision_keeps_the_gradient_whatever_the_size_of_the_reward(kind, tmp_path):
    reward = make_reward(kind, tmp_path)
    reward.requires_grad_(False)
    images = torch.rand(4, 3, 40, 32, generator=torch.Generator().manual_seed(0))
    exact = gradient(reward, images)
    for dtype, closeness in ((torch.bfloat16, 0.98), (torch.float16, 0.999)):
        half = reward.in_precision(dtype)
        found = gradient(half, images)
        assert half.dtype == dtype and found.dtype == torch.float32 and half(images).dtype == torch.float32
        cosines = torch.cosine_similarity(found.flatten(1), exact.flatten(1))
        assert cosines.min() > closeness, (dtype, cosines)
        # Of a reward whose gradients float16 could not hold. A power of two, so that they are the same to the last bit.
        for weight in (2.0**-30, 2.0**20):
            assert (gradient(half, images, weight) / weight).equal(found), (dtype, weight)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode if isinstance(mode, str) else type(mode).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_image_is_steered_to_its_own_prompt_in_every_mode(mode, dtype, tmp_path):
    pipe = make_pipeline()
    reward = make_reward("pickscore", tmp_path).in_precision(dtype)
    call = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "pt"}

    def drawn(reward, prompts, seeds, scale=30.0):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with cg.Guidance(reward, scale=scale, mode=mode).attach(pipe) as guidance:
            images = pipe(prompts, generator=generators, **call).images
        assert scale == 0 or (guidance.report.dropped == 0 and len(guidance.report.rewards[0]) == len(seeds))
        return images

    together, plain = (drawn(reward, ["cat", "dog"], [0, 1], scale) for scale in (30.0, 0.0))
    assert (together - plain).abs().flatten(1).amax(1).min() > 1e-4  # both were steered
    for place, prompt in enumerate(PROMPTS):
        alone = drawn(reward.with_prompts(prompt), [["cat", "dog"][place]], [place])
        torch.testing.assert_close(together[place], alone[0], rtol=0, atol=1e-4 if dtype == torch.float32 else 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["x0", "exact", methods.Tilt(2)], ids=["x0", "exact", "tilt"])
def test_the_packaged_pipeline_is_steered_by_each_kind(mode, tmp_path):
    pipe, clip = cg.load_pipeline("emoji"), cg.CLIP.from_pretrained("emoji")
    pipe.set_progress_bar_config(disable=True)
    texts = ["a noto picture of a red apple", "a noto picture of a rocket"]
    weight = clip.encode_text(["a red apple"])[0]
    rewards = {
        "pickscore": (PreferenceReward("pickscore", clip, texts), 10.0),
        "hpsv2.1": (PreferenceReward("hpsv2.1", clip, texts, scaled=False), 100.0),
        "aesthetic": (AestheticReward(clip, weight, torch.tensor(0.0)), 100.0),
        "half": (PreferenceReward("pickscore", clip, texts).in_precision(torch.bfloat16), 10.0),
    }
    call = {"num_inference_steps": 3, "output_type": "pt"}
    for name, (reward, scale) in rewards.items():
        runs = []
        for strength in (0.0, scale):
            generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
            with cg.Guidance(reward, scale=strength, mode=mode).attach(pipe):
                runs.append(pipe(["a noto picture of a cat"] * 2, generator=generators, **call).images)
        with torch.no_grad():
            before, after = (reward(images) for images in runs)
        assert (after > before).all(), (name, before, after)
