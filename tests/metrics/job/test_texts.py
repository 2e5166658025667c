"""Texts: encoded once, cut with their end token kept, or averaged over chunks."""

import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.factories import image_config, make_tokenizer, text_config
from helpers.scoring_helpers import count_calls

from clip_guidance.clip import CLIP, CLIPConfig
from clip_guidance.clip.tokenizer import PromptTruncatedWarning
from clip_guidance.metrics.job.texts import TextEncoder

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
    assert len(calls) == 1  # four rows: the two, and what fills them up
    encoder(["c"])  # b was used least recently
    encoder(["a"])
    assert len(calls) == 2
    encoder(["b"])
    assert len(calls) == 3 and len(encoder._known) == 2


@pytest.mark.parametrize("hidden_size", [32, pytest.param(512, marks=pytest.mark.slow)])
def test_a_vector_does_not_depend_on_its_neighbours(hidden_size):
    """Bit for bit: neither on how many there are, nor on which, nor on its place among them."""
    tokenizer = make_tokenizer()
    text = text_config("transformer", tokenizer, hidden_size=hidden_size, intermediate_size=4 * hidden_size)
    clip = CLIP(CLIPConfig(text_config=text, vision_config=image_config("vit"), projection_dim=24), tokenizer).eval()
    alone = TextEncoder(clip)(["a red apple"])["a red apple"].embed
    words = ["a", "green", "table", "cat", "noto", "butterfly", "insect", "pretty", "photo", "of", "on"]
    for seed in range(20):
        rng = random.Random(seed)
        texts = [" ".join(rng.choices(words, k=rng.randint(1, 9))) for _ in range(rng.randint(0, 9))]
        texts.insert(rng.randint(0, len(texts)), "a red apple")
        assert torch.equal(TextEncoder(clip)(texts)["a red apple"].embed, alone), texts


def test_passes_have_few_shapes(tiny_clip, monkeypatch):
    calls = count_calls(monkeypatch, CLIP, "text_embeds")
    texts = ["a" * length for length in range(1, CONTEXT)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncatedWarning)
        found = TextEncoder(tiny_clip)(texts)
        whole = tiny_clip.encode_text(texts)
    torch.testing.assert_close(torch.stack([found[text].embed for text in texts]), whole)
    assert {tuple(ids.shape) for (ids,) in calls[:-1]} == {(4, 16), (4, 32), (4, CONTEXT)}


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
