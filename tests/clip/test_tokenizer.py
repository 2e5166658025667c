"""Vocabularies learnt here: CLIP's splitting, every text in vocabulary, a padding token of its own."""

import itertools
import json
import random
from collections import Counter

import pytest
from helpers.factories import TEXTS, make_tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from clip_guidance.clip.tokenizer import tokenize, train_tokenizer


def test_frequent_words_become_one_token():
    tokenizer = make_tokenizer()
    assert tokenizer.tokenize("A red apple") == ["a</w>", "red</w>", "apple</w>"]


@pytest.mark.parametrize("text", ["naïve 🦋 café", "x", "日本語", "it's 42!", "\t tabs \n"])
def test_no_text_is_out_of_vocabulary(text):
    tokenizer = make_tokenizer()
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[1:-1]  # unknown text would show as the end token
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert decoded.replace(" ", "") == "".join(text.split())


def test_pads_with_a_token_of_its_own_and_keeps_the_end():
    tokenizer = make_tokenizer()
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    ids = tokenize(tokenizer, ["a red apple"])
    assert ids.shape == (1, 16) and (ids[0, 5:] == tokenizer.pad_token_id).all()


def test_saves_as_a_stock_clip_tokenizer(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXTS).input_ids == tokenizer(TEXTS).input_ids
    assert (loaded.model_max_length, loaded.pad_token) == (16, "<|pad|>")


def test_a_vocabulary_without_room_is_refused():
    with pytest.raises(ValueError, match="vocab_size of at least 515.*got 100"):
        train_tokenizer(TEXTS, 100, 16)


def merge(word, pair):
    """Join a pair of tokens wherever it occurs in a word, from left to right."""
    joined, place = [], 0
    while place < len(word):
        found = tuple(word[place : place + 2]) == pair
        joined.append("".join(pair) if found else word[place])
        place += 2 if found else 1
    return tuple(joined)


def reference_merges(texts, count):
    """Byte-pair encoding written out: the most frequent pair; of equals the one whose tokens are older."""
    alphabet = sorted(ByteLevel.alphabet())
    age = {token: number for number, token in enumerate([*(s + "</w>" for s in alphabet), *alphabet])}
    words = Counter((*word[:-1], word[-1] + "</w>") for text in texts for word in text.split())
    merges = []
    while len(age) < 512 + count:
        pairs = Counter()
        for word, times in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], age[pair[0]], age[pair[1]]))
        merges.append(best)
        age["".join(best)] = len(age)
        merged = Counter()
        for word, times in words.items():
            merged[merge(word, best)] += times
        words = merged
    return merges


@pytest.mark.parametrize(("letters", "seed"), [("abcdef", 0), ("ab", 1), ("a", 2)])
def test_equal_texts_give_an_equal_vocabulary_whatever_their_order_and_the_threads(letters, seed, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    rng = random.Random(seed)
    words = ["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(120)]  # so few that many pairs tie
    texts = [" ".join(rng.choices(words, k=5)) for _ in range(200)]
    expected = reference_merges(texts, 150)
    for _ in range(5):
        rng.shuffle(texts)
        tokenizer = train_tokenizer(texts, 515 + 150, 16)
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        assert [tuple(pair) for pair in model["merges"]] == expected
        assert [*model["vocab"]][512:-3] == ["".join(pair) for pair in expected]
