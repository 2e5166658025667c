"""Dual encoders of other libraries, adapted: equal to the library's own class on the same weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.factories import TEXTS
from helpers.factories.families import FAMILIES
from PIL import Image

import clip_guidance as cg
from clip_guidance.clip import ModelError


def random_images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)) for _ in TEXTS]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_metaclip_2_is_pooled_at_the_end_token_as_the_library_pools_it(tmp_path):
    family = FAMILIES["metaclip_2"]
    clip, (model, tokenizer, _) = cg.CLIP.from_pretrained(family.save(tmp_path)), family.build()
    assert isinstance(clip, cg.DualEncoder) and not isinstance(clip, cg.CLIP) and not clip.training
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    close(clip.encode_text(TEXTS), F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1))


def test_a_model_in_memory_is_taken_wherever_a_clip_is(tmp_path):
    family = FAMILIES["metaclip_2"]
    model = type(family.build()[0]).from_pretrained(family.save(tmp_path))
    loaded = cg.CLIP.from_pretrained(tmp_path)
    images = random_images()
    for take in (
        lambda clip: cg.clip_score(clip, images, TEXTS),
        lambda clip: cg.ZeroShotClassifier(clip, ["cat", "dog"])(images).probs,
        lambda clip: cg.image_similarity(clip, images),
        lambda clip: cg.clip_iqa(clip, images)["quality"],
        lambda clip: cg.CLIPGuidance(clip, "a cat").reward(torch.full((1, 3, 32, 32), 0.5)),
    ):
        torch.testing.assert_close(take(model), take(loaded))


def test_a_model_in_memory_without_a_name_is_refused_with_the_way_out():
    model = FAMILIES["metaclip_2"].build()[0]
    with pytest.raises(ModelError, match=r"a MetaClip2Model in memory .*: CLIP.wrap\(model, tokenizer"):
        cg.clip_score(model, random_images(), TEXTS)
    with pytest.raises(TypeError, match="clip must be a CLIP, got Linear: CLIP.from_pretrained"):
        cg.clip_score(torch.nn.Linear(1, 1), random_images(), TEXTS)
