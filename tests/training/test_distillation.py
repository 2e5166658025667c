"""Distillation pulls towards the teachers' mean ranking of the very views that the student sees."""

import copy

import pytest
import torch
from helpers.factories import TEXTS, make_clip

from clip_guidance.clip.tokenizer import tokenize
from clip_guidance.training.augment import random_views
from clip_guidance.training.distillation import Teachers, distillation_loss
from clip_guidance.training.objective import ContrastiveObjective, caption_groups


def test_it_is_the_mean_divergence_of_both_directions():
    logits = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = 0.0
    for student, *teachers in (logits, logits.mT):
        wanted = sum(teacher.softmax(1) for teacher in teachers) / 2
        expected += (wanted * (wanted.log() - student.softmax(1).log())).sum(1).mean() / 2
    found = distillation_loss(logits[0], list(logits[1:]))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert distillation_loss(logits[0], [logits[0]]).abs() < 1e-15


def losses(clip, teachers, weight):
    """The loss of one step of four pairs, in chunks of two, with augmentation."""
    objective = ContrastiveObjective(
        clip.train(), chunk_size=2, augment=random_views, pixel_values=clip.image_processor.differentiable,
        teachers=teachers, distillation_weight=weight,
    )  # fmt: skip
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    texts = None if teachers is None else teachers.text_embeds(TEXTS)
    ids = tokenize(clip.tokenizer, TEXTS)
    return objective(images, ids, caption_groups(TEXTS), teacher_texts=texts, seed=3)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    clip = make_clip()
    plain, taught = losses(clip, None, 0.0), losses(clip, Teachers([copy.deepcopy(clip)]), 100.0)
    torch.testing.assert_close(taught, plain, rtol=1e-5, atol=1e-5)  # another view would be off by far more


def test_other_teachers_are_learnt_from_with_the_weight():
    clip, others = make_clip(seed=0), [make_clip("resnet", "cbow", seed=5), make_clip(seed=7)]
    plain, once, thrice = (losses(clip, Teachers(others) if w else None, w) for w in (0.0, 1.0, 3.0))
    torch.testing.assert_close(thrice - plain, 3 * (once - plain))
    assert once > plain + 1e-3
    once.backward()
    assert clip.visual_projection.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for other in others for weight in other.parameters())


def test_teachers_are_no_part_of_the_student():
    teachers = Teachers([make_clip(seed=5)])
    objective = ContrastiveObjective(make_clip(), teachers=teachers)
    assert objective.state_dict().keys() == ContrastiveObjective(make_clip()).state_dict().keys()
    assert copy.deepcopy(objective).teachers is teachers


def test_what_it_needs_is_said():
    with pytest.raises(ValueError, match="expected at least one teacher, got none"):
        Teachers([])
    objective = ContrastiveObjective(make_clip(), teachers=Teachers([make_clip()]))
    with pytest.raises(ValueError, match="distillation needs teacher_texts: the teachers' embeddings of the captions"):
        objective(torch.rand(4, 3, 32, 32), torch.ones(4, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="image_positives_weight needs groups: the concept of each image"):
        ContrastiveObjective(make_clip(), image_positives_weight=1.0)(
            torch.rand(4, 3, 32, 32), torch.ones(4, 3, dtype=torch.long)
        )
