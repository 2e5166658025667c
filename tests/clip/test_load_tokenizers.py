"""The tokenizer of a loaded CLIP: of the class that its files name, or refused; folders and the hub alike."""

import itertools
import json
import shutil
import warnings

import pytest
import torch
from helpers.factories import letter_tokenizer, make_clip, make_tokenizer, save_tiny_clip
from helpers.hub_caches import lay_out, ours, same, theirs
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPModel, PreTrainedTokenizerFast

from clip_guidance.clip import CLIP, ModelError


def words_tokenizer(kind):
    """Whole words: "a" is 4; the end token is not the last id."""
    words = {word: i for i, word in enumerate(["[UNK]", "[PAD]", "<s>", "</s>", "a", "red", "apple", "photo", "of"])}
    backend = Tokenizer(models.WordPiece(words, unk_token="[UNK]") if kind == "wordpiece" else models.WordLevel(words))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 2), ("</s>", 3)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=40, **names)


@pytest.fixture(params=["folder", "hub"])
def loaded_from(request, tmp_path):
    """Loads a CLIP from a folder, or from a hub cache that holds the same files."""
    numbers = itertools.count()

    def load(folder, **options):
        if request.param == "folder":
            return CLIP.from_pretrained(folder, **options)
        cached = lay_out(tmp_path / f"cache{next(numbers)}", "owner/clip", {"main": folder})
        return CLIP.from_pretrained("owner/clip", **cached, **options)

    return load


def test_a_model_without_a_vocabulary_is_refused_unless_one_is_given(loaded_from, folders, tmp_path):
    folder = shutil.copytree(folders["main"], tmp_path / "clip")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
        with pytest.raises(ModelError, match=r": no vocabulary: expected tokenizer.json, or vocab.json and merges.txt"):
            loaded_from(folder)
    same(loaded_from(folder, tokenizer=letter_tokenizer()), folders["main"])


@pytest.mark.parametrize("kind", ["wordpiece", "wordlevel"])
def test_the_class_that_the_files_name_reads_them(loaded_from, kind, tmp_path):
    tokenizer = words_tokenizer(kind)
    folder = save_tiny_clip(tmp_path / "clip", tokenizer=tokenizer)
    model = CLIPModel.from_pretrained(folder).eval()
    texts = ["a red apple", "a photo of a apple", "red"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    assert inputs.input_ids[0].tolist() == [2, 4, 5, 6, 3, 1, 1]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.get_text_features(**inputs, token_type_ids=None).pooler_output)
    torch.testing.assert_close(loaded_from(folder).encode_text(texts), expected, rtol=0, atol=1e-6)
    # Where the class is not named, transformers takes CLIP's, which splits texts otherwise.
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for named in (None, "CLIPTokenizer"):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": named}))
        with pytest.raises(ModelError, match="tokenizer cannot be loaded|json holds a Word.* that CLIPTokenizer"):
            loaded_from(folder)


def test_a_class_that_cannot_be_had_or_a_damaged_file_is_named(loaded_from, folders, tmp_path):
    folder = shutil.copytree(folders["main"], tmp_path / "clip")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    for change in ({"tokenizer_class": "T5Tokenizer"}, {"tokenizer_class": 5}, {"eos_token": 5}):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelError, match="its tokenizer cannot be loaded: ") as caught:
            loaded_from(folder)
        assert len(str(caught.value)) <= 300
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for text in ("[" * 100_000, "{}", "[1]", '{"model": 5}', "\x00"):
        (folder / "tokenizer.json").write_text(text)
        with pytest.raises(ModelError, match="its tokenizer cannot be loaded: ") as caught:
            loaded_from(folder)
        assert len(str(caught.value)) <= 300


def test_old_vocabulary_files_are_read(loaded_from, folders, tmp_path):
    folder = shutil.copytree(folders["main"], tmp_path / "clip")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded: .*`vocab` and `merges`"):
        loaded_from(folder)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    same(loaded_from(folder), folders["main"])


def test_a_clip_without_a_tokenizer_is_saved_and_loaded(loaded_from, tmp_path):
    clip, image = make_clip(), Image.new("RGB", (40, 30), "red")
    CLIP(clip.config).eval().save_pretrained(tmp_path / "clip")
    loaded = loaded_from(tmp_path / "clip")
    assert loaded.tokenizer is None and loaded.encode_image(image).shape == (1, 24)
    with pytest.raises(ValueError, match=r"was made without a tokenizer: .*from_pretrained\(name, tokenizer=...\)"):
        loaded.encode_text("a red apple")
    ids = make_tokenizer()(["a red apple"], return_tensors="pt").input_ids
    given = loaded_from(tmp_path / "clip", tokenizer=make_tokenizer())
    assert torch.equal(given.encode_text("a red apple"), loaded.text_embeds(ids))
    (tmp_path / "clip" / "tokenizer_config.json").write_text("{}")  # what remains of one that was lost
    with pytest.raises(ModelError, match="no vocabulary"):
        loaded_from(tmp_path / "clip")


@given(st.lists(st.text(max_size=80), min_size=1, max_size=4))
def test_any_texts_are_those_of_transformers_or_refused(folders, texts):
    clip = ours(folders["main"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            embeds = clip.encode_text(texts)
        except ValueError as error:
            assert len(str(error)) <= 300
            assert any(not text.strip() for text in texts) and "expected a prompt" in str(error)
            return
    model, tokenizer = theirs(folders["main"])
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model.get_text_features(**inputs).pooler_output)
    torch.testing.assert_close(embeds, expected, rtol=0, atol=1e-6)
