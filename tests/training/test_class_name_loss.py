"""The loss over all names against its closed form, and what it needs."""

import math

import pytest
import torch
from helpers.factories import make_clip

from clip_guidance.training.class_name_loss import ClassNameLoss
from clip_guidance.training.objective import ContrastiveObjective
from clip_guidance.zero_shot.templates import TRAINING_TEMPLATES

NAMES = ["apple", "cat", "table", "red cat"]


def locked_clip():
    clip = make_clip().double()
    clip.text_encoder.requires_grad_(False)
    return clip


def test_it_is_the_cross_entropy_over_all_names():
    """Of the step's template, written out image by image from the embeddings that the CLIP itself gives."""
    clip, indices = locked_clip(), [2, 0, 2]
    embeds = torch.randn(3, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = float(clip.logit_scale.detach().exp())
    loss = ClassNameLoss(clip, NAMES, batch_size=3)
    for seed, template in enumerate(TRAINING_TEMPLATES):
        texts = clip.encode_text([template.format(text) for text in NAMES])
        expected = 0.0
        for image, index in zip(embeds, indices, strict=True):
            logits = [scale * float(image @ text / image.norm()) for text in texts]
            expected += math.log(sum(math.exp(logit) for logit in logits)) - logits[index]
        found = loss(clip, embeds, torch.tensor(indices), seed=seed)
        assert found.item() == pytest.approx(expected / 3, rel=1e-9)


def test_whole_captions_are_read_as_they_are():
    clip, template = locked_clip(), 2
    loss = ClassNameLoss(clip, ["a red cat", "table"], captions=["a red cat"])
    found = clip.text_projection(loss.pooled[template])
    expected = clip.encode_text(["a red cat", TRAINING_TEMPLATES[template].format("table")])
    torch.testing.assert_close(torch.nn.functional.normalize(found, dim=-1), expected, rtol=0, atol=1e-6)


def test_images_the_projection_and_the_temperature_learn_and_the_text_encoder_does_not():
    clip = locked_clip()
    embeds = torch.randn(2, 24, dtype=torch.float64, requires_grad=True)
    ClassNameLoss(clip, NAMES)(clip, embeds, torch.tensor([0, 1])).backward()
    learning = {name for name, parameter in clip.named_parameters() if parameter.grad is not None}
    assert learning == {"logit_scale", "text_projection.weight"} and embeds.grad.abs().sum() > 0


def test_the_objective_adds_it_with_its_weight():
    clip = locked_clip()
    names, images = ClassNameLoss(clip, NAMES), torch.rand(4, 3, 32, 32, dtype=torch.float64)
    ids, indices = torch.randint(0, 90, (4, 8)), torch.arange(4)
    ids[:, -1] = clip.config.text_config.eos_token_id
    plain = ContrastiveObjective(clip)(images, ids)
    alone = names(clip, clip.image_embeds(images), indices, seed=1)
    found = ContrastiveObjective(clip, class_name_loss=names, class_name_loss_weight=0.25)(
        images, ids, None, indices, seed=1
    )
    torch.testing.assert_close(found, plain + 0.25 * alone, rtol=1e-12, atol=0)


def test_what_it_needs_is_said():
    clip = locked_clip()
    with pytest.raises(ValueError, match="expected distinct names, got 3 of which 2 are distinct"):
        ClassNameLoss(clip, ["a", "b", "a"])
    with pytest.raises(ValueError, match="needs a locked text encoder: freeze_text"):
        ClassNameLoss(make_clip(), ["a", "b"])
    with pytest.raises(ValueError, match="needs name_indices: the name of each image"):
        ContrastiveObjective(clip, class_name_loss=ClassNameLoss(clip, NAMES))(
            torch.rand(1, 3, 32, 32).double(), torch.ones(1, 4).long()
        )
