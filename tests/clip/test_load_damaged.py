"""Configs and weights that others have made or damaged: right, or refused by name."""

import copy
import json
import re
import shutil

import pytest
import torch
from helpers.factories import make_clip
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import pipeline

from clip_guidance.clip import CLIP, CLIPConfig, ModelError

_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
    max_leaves=4,
)
_SMALL = st.one_of(st.integers(-1, 40), _JSON)


_OWN_FIELDS = ("text_config", "vision_config", "projection_dim", "logit_scale_init_value")
_KNOWN = [make_clip(*pair).config.to_dict() for pair in (("vit", "transformer"), ("resnet", "cbow"))]


@pytest.mark.slow
@given(st.data(), st.sampled_from(_KNOWN), st.sampled_from(["text_config", "vision_config", None]))
def test_any_config_makes_towers_of_its_sizes_or_is_refused(data, known, part):
    whole = copy.deepcopy(known)
    changed = whole[part] if part else whole
    own = [name for name in changed if name not in ("architectures", "dtype", "transformers_version")]
    changed.update(data.draw(st.dictionaries(st.sampled_from(own), _SMALL, min_size=1, max_size=2)))
    try:
        config = CLIPConfig(**{key: whole[key] for key in _OWN_FIELDS})
    except ValueError as error:
        assert len(str(error)) <= 300 and re.match(r"\w+: |expected one depth", str(error))
        return
    text, vision = config.text_config, config.vision_config
    if max(text.vocab_size, text.hidden_size, vision.hidden_size, vision.image_size, config.projection_dim) > 1000:
        return  # right, and too large to be built here
    with torch.device("meta"):
        clip = CLIP(config)
    assert clip.text_encoder.get_input_embeddings().weight.shape == (text.vocab_size, text.hidden_size)
    assert clip.visual_projection.weight.shape == (config.projection_dim, vision.hidden_size)
    assert len(clip.image_encoder.layer_groups()) >= 2


@given(_JSON)
def test_any_json_in_place_of_a_towers_config_is_refused(value):
    for part in ("text_config", "vision_config"):
        if value is not None:  # None is the default
            with pytest.raises(ValueError, match=f"{part}: expected ") as caught:
                CLIPConfig(**{part: value})
            assert len(str(caught.value)) <= 300


@given(_JSON)
def test_any_json_for_a_config_is_refused_in_a_sentence(tmp_path_factory, document):
    folder = tmp_path_factory.mktemp("any")
    for kind in ({}, {"model_type": "clip_guidance"}, {"model_type": "clip"}):
        whole = {**document, **kind} if isinstance(document, dict) else document
        (folder / "config.json").write_text(json.dumps(whole))
        with pytest.raises(ModelError) as caught:
            CLIP.from_pretrained(folder)
        assert str(caught.value).startswith(str(folder)) and len(str(caught.value)) <= 300


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer_config.json"])
def test_json_that_is_nested_deeply_is_a_sentence(folders, tmp_path, name):
    folder = shutil.copytree(folders["main"], tmp_path / "clip")
    (folder / name).write_text('{"a": ' * 100_000)
    with pytest.raises(ModelError, match=r"nested too deeply|RecursionError|maximum recursion depth") as caught:
        CLIP.from_pretrained(folder)
    assert len(str(caught.value)) <= 300


def test_metadata_of_weights_that_is_no_json_is_a_sentence(folders, tmp_path):
    folder = shutil.copytree(folders["main"], tmp_path / "clip")
    (folder / "model.safetensors").write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        CLIP.from_pretrained(folder)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("key", ["visual_projection.weight", "text_projection.weight"])
def test_weights_that_are_not_finite_are_named(folders, tmp_path, key):
    folder = shutil.copytree(folders["main"], tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    weights[key][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    clip, image = CLIP.from_pretrained(folder), Image.new("RGB", (40, 30), "red")
    encode = {"visual_projection.weight": lambda: clip.encode_image(image), "text_projection.weight": None}[key]
    encode = encode or (lambda: clip.encode_text("a"))
    with pytest.raises(ValueError, match=rf"\w+ 0: its embedding is not finite: the weights {key} of .* are not"):
        encode()


def test_transformers_own_pipeline_reads_a_folder(tmp_path):
    """The probabilities are ours, for a CLIP of this package that transformers' pipeline loads by itself."""
    clip, labels, image = CLIP.from_pretrained("emoji"), ["a red apple", "a rocket"], Image.new("RGB", (64, 64), "red")
    clip.save_pretrained(tmp_path)
    found = pipeline("zero-shot-image-classification", model=str(tmp_path))(image, candidate_labels=labels)
    texts = clip.encode_text([f"This is a photo of {label}." for label in labels])
    expected = (clip.logit_scale.exp() * clip.encode_image(image) @ texts.T).softmax(-1)[0]
    assert {entry["label"]: pytest.approx(entry["score"], abs=1e-5) for entry in found} == dict(
        zip(labels, expected.tolist(), strict=True)
    )
