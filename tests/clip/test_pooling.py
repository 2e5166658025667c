"""The end of a text is the tokenizer's end token, whatever the config says: equal to transformers with the right id."""

import itertools
import json

import pytest
import torch
from helpers.factories import TEXTS, letter_tokenizer, make_clip, make_tokenizer, save_tiny_clip, text_config
from transformers import AutoTokenizer, CLIPModel, CLIPTextModelWithProjection

from clip_guidance.clip import CLIP, CLIPConfig
from clip_guidance.towers import TransformerTextConfig, TransformerTextModel

ADDED = ["a <toy> apple", "<toy>", "<toy> <toy> b"]


def saved_with(folder, added: int, padded_to: int, eos_token_id: int):
    """A transformers CLIP whose vocabulary is larger than CLIP's own: by tokens that were added, and by padding."""
    save_tiny_clip(folder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), CLIPModel.from_pretrained(folder)
    tokenizer.add_tokens(["<toy>", "<dog>"][:added])
    model.text_model.resize_token_embeddings(len(tokenizer) + padded_to)
    model.config.text_config.vocab_size = len(tokenizer) + padded_to
    with torch.no_grad():  # new rows start as the mean of the others: all alike
        torch.nn.init.normal_(model.get_parameter("text_model.embeddings.token_embedding.weight"), std=0.3)
    model.config.text_config.eos_token_id = eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize(
    ("added", "padded_to", "legacy"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (sum(map(bool, case)) == 1))
        for case in itertools.product((0, 2), (0, 7), (False, True))
    ],
)
def test_texts_are_those_of_transformers_with_the_tokenizers_end_token(added, padded_to, legacy, tmp_path):
    true_end = letter_tokenizer().eos_token_id
    tokenizer = saved_with(tmp_path, added, padded_to, 2 if legacy else true_end)
    theirs = CLIPModel.from_pretrained(tmp_path).eval()
    theirs.text_model.eos_token_id = true_end  # a config with 2 pools at the largest id, which may be an added token
    texts = TEXTS + (ADDED if added else [])
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(theirs.get_text_features(**inputs).pooler_output)
    ours = CLIP.from_pretrained(tmp_path)
    torch.testing.assert_close(ours.encode_text(texts), expected, rtol=0, atol=1e-6)
    assert (ours.encode_text(texts) @ ours.encode_text(texts).T - torch.eye(len(texts))).max() < 0.999
    # What is saved, converted and used alone carries the same id.
    ours.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["text_config"]["eos_token_id"] == true_end
    again = CLIP.from_pretrained(tmp_path / "ours")
    assert torch.equal(again.encode_text(texts), ours.encode_text(texts))
    stock = again.text_encoder_with_projection().to_clip_text_model_with_projection()
    assert type(stock) is CLIPTextModelWithProjection
    with torch.no_grad():
        alone = torch.nn.functional.normalize(stock(**inputs).text_embeds)
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-6)


def test_without_a_tokenizer_a_text_without_the_configs_end_is_refused(tmp_path):
    tokenizer = saved_with(tmp_path, 0, 7, eos_token_id=2)
    clip = CLIP.from_transformers(CLIPModel.from_pretrained(tmp_path))
    ids = tokenizer(["ab"], return_tensors="pt").input_ids
    end = clip.config.text_config.vocab_size - 1
    with pytest.raises(ValueError, match=rf"row 0: expected the end token {end} \(eos_token_id.*got \[512, "):
        clip.text_embeds(ids)
    clip.config.text_config.eos_token_id = tokenizer.eos_token_id
    torch.testing.assert_close(clip.text_embeds(ids), CLIP.from_pretrained(tmp_path).text_embeds(ids))


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return TransformerTextModel(text_config("transformer", make_tokenizer())).eval()


def test_a_row_without_an_end_is_named(tower):
    end = tower.config.eos_token_id
    whole, cut = torch.tensor([[3, 4, end, end]]), torch.tensor([[3, 4, 5, 6]])
    with pytest.raises(ValueError, match=rf"row 1: expected the end token {end} .*got \[3, 4, 5, 6\]"):
        tower(torch.cat([whole, cut]))
    torch.testing.assert_close(tower(whole).pooler_output, tower(whole).last_hidden_state[:, 2])


@pytest.mark.slow
def test_a_tower_is_exported_as_one_graph(tower):
    whole = torch.tensor([[3, 4, tower.config.eos_token_id, tower.config.eos_token_id]])
    exported = torch.export.export(tower, (whole,), strict=False)
    torch.testing.assert_close(exported.module()(whole).pooler_output, tower(whole).pooler_output)


def test_the_tokenizer_decides_where_the_config_is_another():
    clip, tokenizer = make_clip(), make_tokenizer()
    config = CLIPConfig(**clip.config.to_dict())
    config.text_config.eos_token_id = 49407  # the default, which a config of one's own may well forget
    other = CLIP(config, tokenizer).eval()
    other.load_state_dict(clip.state_dict())
    assert torch.equal(other.encode_text(TEXTS), clip.encode_text(TEXTS))
    assert other.text_encoder.config.eos_token_id == tokenizer.eos_token_id


def test_an_end_token_of_2_is_that_token_and_has_no_stock_model():
    """RoBERTa's vocabularies end with 2, by which CLIPTextModel means the largest id."""
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    tower = TransformerTextModel(TransformerTextConfig(**sizes, num_attention_heads=2, eos_token_id=2)).eval()
    output = tower(torch.tensor([[0, 19, 7, 2, 1]]))
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state[:, 3])
    with pytest.raises(ValueError, match="pools at the largest id where eos_token_id is 2, not at that token"):
        tower.to_clip_text_model()


@pytest.fixture
def clip(tmp_path):
    """A CLIP with a tokenizer of its own, which a test may change."""
    make_clip().save_pretrained(tmp_path)
    return CLIP.from_pretrained(tmp_path)


def test_the_side_of_the_padding_changes_nothing(clip):
    alone = torch.cat([clip.encode_text(text) for text in TEXTS])
    clip.tokenizer.padding_side, clip.tokenizer.pad_token = "left", clip.tokenizer.eos_token
    torch.testing.assert_close(clip.encode_text(TEXTS), alone, rtol=0, atol=1e-6)


def test_a_token_that_the_tower_does_not_know_is_named(clip):
    clip.tokenizer.add_tokens(["<toy>"])
    size = clip.config.text_config.vocab_size
    assert clip.encode_text("a red apple").shape == (1, 24)
    message = rf"token '<toy>' has the id {size}, and the text tower embeds {size} tokens: .*\({size + 1}\)"
    with pytest.raises(ValueError, match=message):
        clip.encode_text("a <toy>")
