"""Scores against their published formulae, written out here with transformers on the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.factories import CONTEXT, save_tiny_clip
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from clip_guidance.clip import CLIP
from clip_guidance.metrics.clip_score import (
    COSINE,
    HESSEL,
    TORCHMETRICS,
    ScoreDefinition,
    clip_score,
    directional_similarity,
    ref_clip_score,
)

PROMPTS = ["a red apple", "two cats on a mat", "nothing", "an old boat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder) -> CLIP:
    return CLIP.from_pretrained(folder)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    random = np.random.default_rng(2)
    return [Image.fromarray(random.integers(0, 256, (32, 48, 3), dtype=np.uint8)) for _ in PROMPTS]


@pytest.fixture(scope="module")
def embed(folder):
    """Unit embeddings of images or texts by transformers."""
    model, processor = CLIPModel.from_pretrained(folder), CLIPImageProcessorPil.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def embed(items: list) -> torch.Tensor:
        if isinstance(items[0], str):
            tokens = tokenizer(items, padding=True, truncation=True, return_tensors="pt")
            embeds = model.text_projection(model.text_model(**tokens).pooler_output)
        else:
            pixels = processor(items, return_tensors="pt").pixel_values
            embeds = model.visual_projection(model.vision_model(pixels).pooler_output)
        return embeds / embeds.norm(dim=1, keepdim=True)

    return embed


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_hessel(clip, images, embed):
    cosines = (embed(images) * embed([f"A photo depicts {prompt}" for prompt in PROMPTS])).sum(1)
    assert cosines.min() < 0 < cosines.max()  # both sides of the clipping
    scores = clip_score(clip, images, PROMPTS, "hessel")
    close(scores, 2.5 * cosines.clamp(min=0))
    assert HESSEL.mean(scores) == pytest.approx((2.5 * cosines.clamp(min=0)).mean().item(), abs=1e-4)


def test_torchmetrics_is_the_default_and_clips_the_mean_only(clip, images, embed):
    cosines = (embed(images) * embed(PROMPTS)).sum(1)
    scores = clip_score(clip, images, PROMPTS)
    close(scores, 100 * cosines)
    assert TORCHMETRICS.mean(scores) == pytest.approx(max(100 * cosines.mean().item(), 0), abs=1e-3)
    # clipping before or after the mean: the two definitions part on the same four cosines
    cosines = torch.tensor([-0.189, 0.060, -0.088, -0.249])
    assert TORCHMETRICS.mean(TORCHMETRICS.scores(cosines)) == 0
    hundred = ScoreDefinition("hessel-100", weight=100, clip="each")
    assert hundred.mean(hundred.scores(cosines)) == pytest.approx(1.5)


def test_a_cut_prompt_keeps_its_end_token(clip, images):
    """It scores as the part that fits; torchmetrics drops the token (its issue 2883) and the score drops."""
    word = "ox "  # two tokens
    with pytest.warns(UserWarning, match="cut to the context"):
        cut = clip_score(clip, images, word * CONTEXT)
    close(cut, clip_score(clip, images, word * ((CONTEXT - 2) // 2)))


def test_definitions_differ_as_declared(clip, images):
    cosine = clip_score(clip, images, PROMPTS, COSINE)
    close(clip_score(clip, images, PROMPTS, TORCHMETRICS), 100 * cosine)
    own = ScoreDefinition("own", weight=3.0, prefix="art of ", clip="each")
    prefixed = clip_score(clip, images, [f"art of {prompt}" for prompt in PROMPTS], "cosine")
    close(clip_score(clip, images, PROMPTS, own), 3 * prefixed.clamp(min=0))


def test_one_prompt_serves_all_images_and_each_image_scores_alone(clip, images):
    together = clip_score(clip, images, PROMPTS[0])
    assert together.shape == (4,)
    for image, score in zip(images, together, strict=True):
        close(clip_score(clip, image, PROMPTS[0]), score[None])


def test_the_record_tells_models_and_definitions_apart(clip, folder, tmp_path):
    record = HESSEL.record(clip)
    assert {**record, "fingerprint": None} == {
        "definition": "hessel",
        "weight": 2.5,
        "prefix": "A photo depicts ",
        "clip": "each",
        "model": str(folder),
        "fingerprint": None,
        "dtype": "float32",
        "preprocessing": "resize 32 bicubic, crop 32",
        "context_length": CONTEXT,
    }
    other = CLIP.from_pretrained(save_tiny_clip(tmp_path, seed=1))
    assert HESSEL.record(other)["fingerprint"] != record["fingerprint"] == HESSEL.record(clip)["fingerprint"]


def test_ref_clip_score(clip, images, embed):
    references = [["a green apple", "fruit"], "cats", ["x", "y", "z"], ["boats", "an old boat"]]
    image_embeds, prefix = embed(images), "A photo depicts "
    expected = []
    for image_embed, prompt, refs in zip(image_embeds, PROMPTS, references, strict=True):
        text_embed = embed([prefix + prompt])[0]
        refs = [refs] if isinstance(refs, str) else refs
        s = max(2.5 * float(image_embed @ text_embed), 0)
        r = max([0.0, *(float(text_embed @ embed([prefix + ref])[0]) for ref in refs)])
        expected.append(2 * s * r / (s + r) if s + r else 0.0)
    scores = ref_clip_score(clip, images, PROMPTS, references)
    close(scores, torch.tensor(expected))
    assert scores.max() > 0
    # a text that is its own reference has r = 1
    s = clip_score(clip, images, PROMPTS, "hessel")
    close(ref_clip_score(clip, images, PROMPTS, PROMPTS), 2 * s / (s + 1))


def test_ref_clip_score_is_zero_not_nan_where_nothing_agrees(clip, images):
    opposed = ScoreDefinition("opposed", weight=0.0)
    assert ref_clip_score(clip, images, PROMPTS, PROMPTS, opposed).tolist() == [0, 0, 0, 0]


def test_directional_similarity(clip, images, embed):
    before, after = images[:2], images[2:]
    change = embed(after) - embed(before)
    expected = torch.cosine_similarity(change, embed(PROMPTS[2:]) - embed(PROMPTS[:2]), dim=1)
    close(directional_similarity(clip, before, after, PROMPTS[:2], PROMPTS[2:]), expected)
    swapped = directional_similarity(clip, after, before, PROMPTS[:2], PROMPTS[2:])
    close(swapped, -expected)  # an edit undone points the other way


def test_directional_similarity_without_a_change_is_zero(clip, images):
    unchanged = directional_similarity(clip, images, images, "a cat", "a dog")
    same_text = directional_similarity(clip, images[:2], images[2:], "a cat", "a cat")
    assert unchanged.tolist() == [0] * 4 and same_text.tolist() == [0] * 2


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda c, i: clip_score(c, i, PROMPTS[:3]), "one for each of 4 images, got 3 texts"),
        (lambda c, i: clip_score(c, i[0], PROMPTS), "one for each of 1 images, got 4 texts"),
        (lambda c, i: clip_score(c, i, ["a", " ", "b", "c"]), "text 1 is empty"),
        (lambda c, i: clip_score(c, [], []), "expected at least one image"),
        (
            lambda c, i: clip_score(c, i, PROMPTS, "clipscore"),
            "no score definition 'clipscore'; there are hessel, ",
        ),
        (lambda c, i: ref_clip_score(c, i, PROMPTS, ["a"]), "references for each of 4 images, got 1"),
        (lambda c, i: ref_clip_score(c, i, PROMPTS, ["a", [], "b", "c"]), "image 1 has no reference text"),
        (lambda c, i: directional_similarity(c, i, i[1:], "a", "b"), "4 images before and 3 after"),
        (
            lambda c, i: ScoreDefinition("x", clip="both"),
            "clip must be 'each', 'mean' or 'never', got 'both'",
        ),
    ],
)
def test_errors(clip, images, call, message):
    with pytest.raises(ValueError, match=message):
        call(clip, images)
