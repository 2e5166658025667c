"""The forms in which people keep a CLIP of transformers, and what is wrong with some."""

import json
import shutil
import warnings

import pytest
import torch
import transformers as tf
from helpers.factories import make_tokenizer
from helpers.factories.families import CLIP_PROCESSOR, FAMILIES, SIZES, VISION, siglip_tokenizer
from helpers.family_checks import photo
from safetensors.torch import load_file, save_file

import clip_guidance as cg
from clip_guidance.clip import ModelError
from clip_guidance.clip.image_processor import ImageProcessor

LONG = "a photo of a red apple on a table and a green apple " * 4


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return FAMILIES["siglip"].save(tmp_path_factory.mktemp("siglip"))


@pytest.fixture
def damaged(siglip, tmp_path):
    """A copy of a SigLIP, to be damaged."""
    return shutil.copytree(siglip, tmp_path / "damaged")


def save_clip(folder, context=32, side=32, **options):
    """Saves a CLIP of transformers with all its parts, and returns it."""
    torch.manual_seed(0)
    tokenizer, processor = make_tokenizer(context), CLIP_PROCESSOR[0](size=side, crop_size=side)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": context, **ids}
    model = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config={**VISION, "image_size": side})).eval()
    model.to(options.pop("dtype", torch.float32)).save_pretrained(folder, **options)
    for part in (tokenizer, processor):
        part.save_pretrained(folder)
    return model.float()


@torch.no_grad()
def same(clip, model, processor, text="a red apple"):
    tokens = clip.tokenizer([text], return_tensors="pt")
    pixels = processor([photo()], return_tensors="pt").pixel_values
    outputs = model(**tokens, pixel_values=pixels)
    torch.testing.assert_close(clip.encode_text(text), outputs.text_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(clip.encode_image(photo()), outputs.image_embeds, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_shard_size": "60KB"}, "a red apple"),
        ({"dtype": torch.bfloat16}, "a red apple"),
        ({"context": 248}, LONG),
        ({"side": 48}, "a red apple"),  # as of 336 pixels: more than the usual
    ],
)
def test_a_clip_of_any_size_and_in_any_files_loads(tmp_path, options, text):
    side = options.get("side", 32)
    model = save_clip(tmp_path, **options)
    clip = cg.CLIP.from_pretrained(tmp_path)
    assert clip.dtype == torch.float32
    same(clip, model, CLIP_PROCESSOR[0](size=side, crop_size=side), text)
    if "max_shard_size" in options:
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    if "dtype" in options:
        assert cg.CLIP.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    if "context" in options:
        assert len(clip.tokenizer(LONG).input_ids) > 32


@pytest.mark.slow
def test_a_config_of_old_form_loads(tmp_path):
    model = save_clip(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {f"{part}_dict": config.pop(part) for part in ("text_config", "vision_config")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    same(cg.CLIP.from_pretrained(tmp_path), model, CLIP_PROCESSOR[0](size=32, crop_size=32))


@pytest.mark.slow  # transformers imports all its tokenizers to say that it has none
def test_parts_are_taken_from_another_model_by_its_name(siglip, damaged):
    whole = cg.CLIP.from_pretrained(siglip)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (damaged / name).unlink()
    with pytest.raises(ModelError, match="no vocabulary: expected tokenizer.json"):
        cg.CLIP.from_pretrained(damaged, image_processor=siglip)
    with pytest.raises(ModelError, match="has no preprocessor_config.json; give an image_processor"):
        cg.CLIP.from_pretrained(damaged, tokenizer=str(siglip))
    clip = cg.CLIP.from_pretrained(damaged, tokenizer=str(siglip), image_processor=siglip)
    assert clip.fingerprint() == whole.fingerprint()


@pytest.mark.slow
def test_texts_of_siglip_are_lower_cased_and_padded_whatever_the_tokenizer_is(siglip, damaged):
    """SigLIP 2's repositories name Gemma's tokenizer, which keeps capitals; that of SigLIP needs sentencepiece."""
    expected = cg.CLIP.from_pretrained(siglip).encode_text("a red apple")
    for named in ("GemmaTokenizer", "SiglipTokenizer"):
        config = json.loads((damaged / "tokenizer_config.json").read_text()) | {"tokenizer_class": named}
        (damaged / "tokenizer_config.json").write_text(json.dumps(config))
        clip = cg.CLIP.from_pretrained(damaged)
        assert type(clip.tokenizer).__name__ != "Siglip2Tokenizer"
        torch.testing.assert_close(clip.encode_text("A RED Apple"), expected)
        padded = clip._padded([[5, 6]], None)[0]
        assert padded.shape == (1, 64)


def test_a_tokenizer_larger_than_the_embedding_is_refused_where_a_token_has_no_row(siglip):
    tokenizer = siglip_tokenizer()
    tokenizer.add_tokens(["apple"])
    clip = cg.CLIP.from_pretrained(siglip, tokenizer=tokenizer)
    assert clip.encode_text("a cat").isfinite().all()
    with pytest.raises(ValueError, match=r"token 'apple' has the id \d+, and the text tower embeds \d+ tokens"):
        clip.encode_text("a red apple")


def test_a_processor_that_does_not_fit_is_refused(siglip):
    with pytest.raises(ModelError, match="its image tower reads images of 32 pixels, its preprocessing makes 64"):
        cg.CLIP.from_pretrained(siglip, image_processor=ImageProcessor(64))


def test_missing_weights_are_named_with_what_is_left_over(damaged):
    weights = load_file(damaged / "model.safetensors")
    weights["logit_offset"] = weights.pop("logit_bias")
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="weights missing from it: logit_bias; left over are logit_offset"):
        cg.CLIP.from_pretrained(damaged)


@pytest.mark.slow
def test_weights_that_are_left_over_are_named(damaged):
    weights = load_file(damaged / "model.safetensors")
    save_file({**weights, "head.weight": torch.zeros(1)}, damaged / "model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match="1 weights belong to no part of its towers, and are not read: head.weight"):
        cg.CLIP.from_pretrained(damaged)


@pytest.mark.parametrize("kind", ["blip-2", "x", None])
def test_an_unknown_type_names_what_was_found_and_what_is_known(damaged, kind):
    (damaged / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ModelError, match=rf"has model_type {kind!r}, expected .*siglip") as caught:
        cg.CLIP.from_pretrained(damaged)
    assert len(str(caught.value)) <= 300


def test_what_steers_is_a_dual_encoder_with_logits():
    model = tf.CLIPModel(tf.CLIPConfig(text_config=SIZES, vision_config=VISION))
    del model.logit_scale
    with pytest.raises(ModelError, match="this model: a clip has no logit_scale"):
        cg.CLIP.wrap(model, make_tokenizer(), ImageProcessor(32))


def test_a_long_text_is_cut_at_the_context_of_the_text_tower(siglip):
    tokenizer = siglip_tokenizer()
    tokenizer.model_max_length = 1000
    clip = cg.CLIP.from_pretrained(siglip, tokenizer=tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cg.PromptTruncatedWarning)
        assert clip.encode_text(LONG).isfinite().all()
    assert clip.tokenizer.model_max_length == 64
