"""Vocabularies learnt here: CLIP's splitting, every text in vocabulary, a padding token of its own."""

import pytest
from helpers.factories import TEXTS, make_tokenizer
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
