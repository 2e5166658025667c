"""Texts: encoded once, cut with their end token kept, or averaged over chunks."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from scoring_helpers import count_calls

from clip_guidance.clip import CLIP
from clip_guidance.scoring.texts import TextEncoder
from clip_guidance.tokenizer import PromptTruncatedWarning

CONTEXT = 40  # one token a letter, start and end included


def test_a_text_is_encoded_as_the_clip_does(tiny_clip):
    texts = ["a cat", "ox", "abcdefghij"]
    encoded = TextEncoder(tiny_clip)(texts)
    torch.testing.assert_close(torch.stack([encoded[text].embed for text in texts]), tiny_clip.encode_text(texts))
    assert [encoded[text].tokens for text in texts] == [6, 4, 12]


def test_each_distinct_text_is_encoded_once_while_it_is_remembered(tiny_clip, monkeypatch):
    calls = count_calls(monkeypatch, CLIP, "text_embeds")
    encoder = TextEncoder(tiny_clip, remembered=2)
    encoder(["a", "b", "a"])
    encoder(["b", "a"])
    assert len(calls) == 2
    encoder(["c"])  # b was used least recently
    encoder(["a"])
    assert len(calls) == 3
    encoder(["b"])
    assert len(calls) == 4 and len(encoder._known) == 2


def test_a_vector_does_not_depend_on_its_neighbours(tiny_clip):
    alone = TextEncoder(tiny_clip)(["a cat"])["a cat"].embed
    among = TextEncoder(tiny_clip)(["an elephant with a hat", "a cat", "b"])["a cat"].embed
    assert torch.equal(alone, among)


def test_a_long_text_keeps_its_end_and_is_reported_once(tiny_clip):
    encoder = TextEncoder(tiny_clip)
    first, second = "ab" * 30, "cd" * 30
    with pytest.warns(PromptTruncatedWarning, match="62 tokens cut to the context of 40") as caught:
        found = encoder([first, second])
    assert len(caught) == 1  # the rows tell of each
    assert all(text.truncated and text.tokens == 62 for text in found.values())
    fits = encoder([first[: CONTEXT - 2]])[first[: CONTEXT - 2]]
    assert not fits.truncated and fits.tokens == CONTEXT
    # one token a letter: what is left of the long text is the text of the letters that fit, but for the word's end
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncatedWarning)
        expected = tiny_clip.encode_text(first)[0]
    torch.testing.assert_close(found[first].embed, expected)


def test_chunks_of_a_long_text_are_averaged(tiny_clip):
    words = [f"{letter} " * 38 for letter in "abc"]  # 114 tokens in three chunks of 38
    text = "".join(words)
    found = TextEncoder(tiny_clip, "chunk-average")([text])[text]
    mean = tiny_clip.encode_text(words).mean(0)
    torch.testing.assert_close(found.embed, F.normalize(mean, dim=0))
    assert found.tokens == 116 and not found.truncated


def test_a_short_text_is_the_same_either_way(tiny_clip):
    cut, averaged = (TextEncoder(tiny_clip, way)(["a cat"])["a cat"].embed for way in ("truncate", "chunk-average"))
    assert torch.equal(cut, averaged)


def test_without_a_tokenizer(tiny_clip):
    with pytest.raises(ValueError, match="made without a tokenizer"):
        TextEncoder(CLIP(tiny_clip.config))
    with pytest.raises(ValueError, match="expected truncate or chunk-average for long prompts, got 'cut'"):
        TextEncoder(tiny_clip, "cut")
