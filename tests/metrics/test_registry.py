"""The protocol of image scores: each against its formula written out on the embeddings, whatever its kind."""

import pytest
import torch
from helpers.factories import make_clip
from safetensors.torch import save_file

from clip_guidance.metrics.clip_score import ScoreDefinition, clip_score
from clip_guidance.metrics.registry import PromptScore, get_image_score, score_images

PROMPTS = ["a red apple", "a photo of a cat", "a red apple"]


@pytest.fixture(scope="module")
def clip():
    return make_clip()


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def head(tmp_path):
    generator = torch.Generator().manual_seed(1)
    tensors = {"weight": torch.randn(1, 24, generator=generator), "bias": torch.tensor([5.0])}
    save_file(tensors, tmp_path / "head.safetensors")
    return tmp_path / "head.safetensors"


@pytest.mark.parametrize("name", ["torchmetrics", "hessel", "cosine"])
def test_a_prompt_score_is_the_clip_score(clip, images, name):
    score = get_image_score(name)
    assert (score.name, score.needs_prompt) == (name, True)
    scores = score_images(clip, images, score, PROMPTS)
    torch.testing.assert_close(scores, clip_score(clip, images, PROMPTS, name))
    torch.testing.assert_close(
        score_images(clip, images, name, PROMPTS[0]), clip_score(clip, images, PROMPTS[0], name)
    )


def test_the_mean_is_that_of_the_definition():
    scores = torch.tensor([-3.0, 1.0])
    assert get_image_score("torchmetrics").mean(scores) == 0
    assert get_image_score("cosine").mean(scores) == -1
    assert get_image_score("clip-iqa").mean(scores) == -1


def test_every_kind_scores_and_says_how(clip, images, head):
    image_embeds = clip.encode_image(images)
    for name in ("torchmetrics", "hessel", "cosine", "clip-iqa:sharpness", f"aesthetic:{head}"):
        score = get_image_score(name)
        texts = [score.texts(prompt) for prompt in PROMPTS]
        assert score.needs_prompt or texts[0] == texts[1]  # the same beside every image
        embeds = torch.stack([clip.encode_text(group) for group in texts]) if texts[0] else None
        whole = score.scores(clip, image_embeds, embeds)
        assert whole.shape == (3,) and whole.isfinite().all()
        one = score.scores(clip, image_embeds[1:2], embeds if embeds is None else embeds[1:2])
        torch.testing.assert_close(one, whole[1:2])  # an image scores alone
        torch.testing.assert_close(score_images(clip, images, score, PROMPTS), whole)
        record = score.record(clip)
        assert next(iter(record)) == "definition" and record["fingerprint"] == clip.fingerprint()
        assert all(isinstance(value, (str, int, float)) for value in record.values())  # flat: columns of a table


def test_own_definitions_and_scores_pass_through():
    definition = ScoreDefinition("own", weight=3.0)
    score = get_image_score(definition)
    assert score == PromptScore(definition) and get_image_score(score) is score


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda c, i: get_image_score("clipscore"), "no score 'clipscore'; there are hessel, torchmetrics, cosine,"),
        (lambda c, i: get_image_score("aesthetic:"), "no score 'aesthetic:'; there are"),
        (lambda c, i: get_image_score("clip-iqa:nice"), "no CLIP-IQA pair 'nice'; there are quality, "),
        (lambda c, i: score_images(c, i, "cosine"), "cosine compares images with their prompts"),
        (lambda c, i: score_images(c, i, "cosine", ["a", "b"]), "one for each of 3 images, got 2 texts"),
        (
            lambda c, i: get_image_score("clip-iqa").scores(c, torch.ones(3, 24), torch.ones(3, 1, 24)),
            r"clip-iqa:quality: expected text_embeds of shape \(3, 2, 24\), got \(3, 1, 24\)",
        ),
        (
            lambda c, i: get_image_score("hessel").scores(c, torch.ones(3, 24), None),
            r"hessel: expected text_embeds of shape \(3, 1, 24\), got None",
        ),
    ],
)
def test_errors(clip, images, call, message):
    with pytest.raises(ValueError, match=message):
        call(clip, images)
