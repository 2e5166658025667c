"""A text tower that learns keeps what a denoiser reads of the texts that it was trained on."""

import copy

import pytest
import torch
from helpers.factories import make_clip

from clip_guidance.clip import ModelError
from clip_guidance.clip.tokenizer import train_tokenizer
from clip_guidance.data.dataset import Row
from clip_guidance.training.objective import ContrastiveObjective
from clip_guidance.training.text_anchor import TextAnchor

ROWS = [Row(name, "noto", ("small",)) for name in ("cat", "dog", "bus", "tree", "house", "fish", "car", "boat")]


def test_the_loss_is_the_squared_change_of_the_states():
    clip, other = make_clip(seed=0), make_clip(seed=1)
    ids = TextAnchor(other, clip).draw(ROWS, "0")
    assert TextAnchor(clip, clip)(clip, ids) == 0
    states = [each.text_encoder(ids).last_hidden_state for each in (clip, other)]
    found = TextAnchor(copy.deepcopy(other), clip)(clip, ids)
    torch.testing.assert_close(found, (states[0] - states[1]).square().mean())


def test_the_states_are_those_that_a_stock_pipeline_reads():
    clip, other = make_clip(seed=0), make_clip(seed=1)
    anchor = TextAnchor(copy.deepcopy(other), clip)
    ids = anchor.draw(ROWS, "0")
    wanted = other.text_encoder.to_clip_text_model()(ids).last_hidden_state
    torch.testing.assert_close(anchor.tower(ids, None).last_hidden_state, wanted)


def test_captions_of_every_fourth_row_are_padded_and_told_by_the_seed():
    clip = make_clip()
    anchor = TextAnchor(copy.deepcopy(clip), clip)
    ids = anchor.draw(ROWS, "3")
    assert ids.shape == (2, clip.tokenizer.model_max_length)
    assert ids.equal(anchor.draw(ROWS, "3"))
    assert any(not ids.equal(anchor.draw(ROWS, str(seed))) for seed in range(8))


def test_the_tower_is_drawn_to_the_anchor_and_the_anchor_stays():
    torch.manual_seed(0)
    clip, other = make_clip(seed=0), make_clip(seed=1)
    anchor = TextAnchor(copy.deepcopy(other), clip)
    objective = ContrastiveObjective(clip, text_anchor=anchor, text_anchor_weight=10.0)
    assert copy.deepcopy(objective).text_anchor is anchor
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    images, ids = torch.rand(4, 3, 32, 32), anchor.draw(ROWS, "0")
    captions = clip.tokenizer(["a cat", "a dog", "a bus", "a tree"], padding=True, return_tensors="pt").input_ids
    before = anchor(clip, ids).item()
    for _ in range(20):
        optimizer.zero_grad()
        objective(images, captions, anchor_ids=ids).backward()
        optimizer.step()
    assert anchor(clip, ids).item() < 0.5 * before
    kept = other.text_encoder.text_model.state_dict()
    assert all(value.equal(kept[name]) for name, value in anchor.tower.state_dict().items())
    assert not any(name.startswith("text_anchor") for name, _ in objective.named_parameters())


def test_the_weight_multiplies_it():
    clip, other = make_clip(seed=0), make_clip(seed=1)
    anchor = TextAnchor(other, clip)
    images, captions, ids = torch.rand(2, 3, 32, 32), anchor.draw(ROWS, "1"), anchor.draw(ROWS, "0")
    plain = ContrastiveObjective(clip)(images, captions)
    held = ContrastiveObjective(clip, text_anchor=anchor, text_anchor_weight=3.0)(images, captions, anchor_ids=ids)
    torch.testing.assert_close(held - plain, 3 * anchor(clip, ids))


def test_what_it_needs_is_said():
    clip = make_clip()
    with pytest.raises(ModelError, match="expected two transformers of ours, got a CBOWTextModel"):
        TextAnchor(make_clip("vit", "cbow"), clip)
    wide, foreign = make_clip(), make_clip()
    wide.text_encoder.config.hidden_size = 64
    foreign.tokenizer = train_tokenizer(["other words"], vocab_size=520, context_length=16)
    for anchor, message in ((wide, "expected states of width 32, got 64"), (foreign, "its vocabulary is another one")):
        with pytest.raises(ModelError, match=f"^--text_anchor: {message}$"):
            TextAnchor(anchor, clip)
    with pytest.raises(ValueError, match="text_anchor needs anchor_ids: the texts whose states are kept"):
        ContrastiveObjective(clip, text_anchor=TextAnchor(clip, clip))(
            torch.rand(4, 3, 32, 32), torch.ones(4, 3, dtype=torch.long)
        )
