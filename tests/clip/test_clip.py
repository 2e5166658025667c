"""CLIP: every tower pair, saving and loading, and transformers' CLIP with equal embeddings."""

import json
import warnings

import numpy as np
import pytest
import torch
from helpers.factories import PAIRS, TEXTS, make_clip, make_tokenizer, real_tokenizer, save_tiny_clip
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel

from clip_guidance.clip import CLIP, CLIPConfig
from clip_guidance.clip.hub import ModelError
from clip_guidance.clip.tokenizer import PromptTruncatedWarning, tokenize


def random_images(count: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40 + i, 57, 3), dtype=np.uint8)) for i in range(count)]


@pytest.mark.parametrize(("image", "text"), PAIRS)
def test_every_pair_embeds_trains_and_survives_saving(image, text, tmp_path):
    clip = make_clip(image, text)
    texts, images = clip.encode_text(TEXTS), clip.encode_image(random_images())
    assert texts.shape == (4, 24) and images.shape == (3, 24)
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(4))
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(3))

    clip.save_pretrained(tmp_path)
    loaded = CLIP.from_pretrained(tmp_path)
    assert not loaded.training and loaded.fingerprint() == clip.fingerprint()
    assert torch.equal(loaded.encode_text(TEXTS), texts)
    assert torch.equal(loaded.encode_image(random_images()), images)

    loaded.train()
    inputs = loaded.tokenizer(TEXTS, padding="max_length", return_tensors="pt").input_ids
    loaded(inputs, torch.randn(4, 3, 32, 32), return_loss=True).loss.backward()
    without = [name for name, p in loaded.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without


@pytest.mark.parametrize("text", ["transformer", "cbow"])
def test_texts_are_encoded_at_the_length_of_the_longest(text, monkeypatch):
    clip, lengths, embed = make_clip(text=text), [], CLIP.text_embeds
    whole = embed(clip, tokenize(clip.tokenizer, TEXTS))
    monkeypatch.setattr(CLIP, "text_embeds", lambda self, ids: lengths.append(ids.shape[1]) or embed(self, ids))
    torch.testing.assert_close(clip.encode_text(TEXTS), whole.detach(), rtol=0, atol=1e-6)
    with pytest.warns(PromptTruncatedWarning):
        clip.encode_text(["cat " * 100])
    assert lengths == [max(len(ids) for ids in clip.tokenizer(TEXTS).input_ids), clip.tokenizer.model_max_length]
    assert lengths[0] < lengths[1]


# OpenAI's own checkpoints say 2, which is wrong.
@pytest.mark.slow
@pytest.mark.parametrize("eos_token_id", [pytest.param(49407, marks=pytest.mark.slow), 2])
def test_transformers_clip_has_equal_embeddings(shared_data, tmp_path, eos_token_id):
    tokenizer = real_tokenizer(shared_data)
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    theirs = CLIPModel.from_pretrained(save_tiny_clip(tmp_path / "hub", 0, tokenizer, eos_token_id)).eval()
    ours = CLIP.from_pretrained(tmp_path / "hub")
    inputs = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    processor = CLIPImageProcessorPil.from_pretrained(tmp_path / "hub")
    with torch.no_grad():
        texts = theirs.get_text_features(**inputs).pooler_output
        images = theirs.get_image_features(processor(random_images(), return_tensors="pt").pixel_values).pooler_output
        pixel_values = processor(random_images(), return_tensors="pt").pixel_values
        logits = theirs(**inputs, pixel_values=pixel_values).logits_per_image
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(ours.encode_text(TEXTS), unit(texts), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.encode_image(random_images()), unit(images), rtol=0, atol=1e-6)
    pixels = torch.stack([ours.preprocess(image) for image in random_images()])
    torch.testing.assert_close(ours(inputs.input_ids, pixels).logits_per_image, logits, rtol=0, atol=1e-4)
    ours.save_pretrained(tmp_path / "ours")
    again = CLIP.from_pretrained(tmp_path / "ours")
    assert torch.equal(again.encode_text(TEXTS), ours.encode_text(TEXTS))


def test_images_in_every_form_embed_alike(tmp_path):
    clip, image = make_clip(), random_images(1)[0]
    image.save(tmp_path / "image.png")
    array = np.array(image)
    forms = [tmp_path / "image.png", str(tmp_path / "image.png"), (tmp_path / "image.png").read_bytes(), array]
    forms.append(torch.from_numpy(array).permute(2, 0, 1))
    for form in forms:
        assert torch.equal(clip.encode_image(form), clip.encode_image(image))
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    assert torch.equal(clip.encode_image(tensor[None]), clip.encode_image(image))
    assert torch.equal(clip.encode_image([image, image], batch_size=1)[1:], clip.encode_image(image))


def test_the_gradient_reaches_the_pixels():
    clip = make_clip()
    image = torch.rand(1, 3, 48, 40, requires_grad=True)
    embeds = clip.image_embeds(clip.image_processor.differentiable(image))
    (gradient,) = torch.autograd.grad(embeds[0, 0], image)
    assert gradient.abs().sum() > 0
    assert not clip.encode_text(TEXTS).requires_grad


def test_a_long_prompt_is_cut_and_says_what_was_cut():
    clip = make_clip()
    long = "a red apple on a table " * 4 + "butterfly"
    with pytest.warns(PromptTruncatedWarning, match=r"the context of 16: '.*butterfly.*' was dropped from 'a red"):
        cut = clip.encode_text([long])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same = clip.encode_text(["a red apple on a table " * 4 + "cat"])
    assert torch.equal(cut, same)  # the end token is kept and the rest has no say


@pytest.mark.parametrize("bad", ["", "  ", None, 3])
def test_an_empty_prompt_is_named(bad):
    with pytest.raises(ValueError, match=f"text 1: expected a prompt with at least one word, got {bad!r}"):
        make_clip().encode_text(["a red apple", bad])


def test_half_precision_weights_load_as_float32(tmp_path):
    clip = make_clip()
    clip.half().save_pretrained(tmp_path)
    assert CLIP.from_pretrained(tmp_path).dtype == torch.float32


def test_models_that_are_none(tmp_path):
    with pytest.raises(ModelError, match="expected config.json, found nothing"):
        CLIP.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"/nowhere: neither a folder, nor a packaged model \(.*\), nor a hub id"):
        CLIP.from_pretrained("/nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="model_type None, expected 'clip_guidance' or 'clip'"):
        CLIP.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="model_type 'bert', expected 'clip_guidance' or 'clip'"):
        CLIP.from_pretrained(tmp_path)


def test_pickles_are_refused(tmp_path):
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"model.pt: a .pt checkpoint is a pickle.*expected safetensors"):
        CLIP.from_pretrained(tmp_path / "model.pt")
    clip = make_clip()
    clip.save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    torch.save(clip.state_dict(), tmp_path / "clip" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"its weights are pickled \(pytorch_model.bin\); expected model.safetensors"):
        CLIP.from_pretrained(tmp_path / "clip")


def test_missing_weights_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    make_clip().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="weights missing from it: visual_projection.weight"):
        CLIP.from_pretrained(tmp_path)


def test_config_names_an_unknown_tower():
    with pytest.raises(ValueError, match="vision_config: expected a model_type among .*clip_guidance_vit.*got 'swin'"):
        CLIPConfig(vision_config={"model_type": "swin"})


def test_fingerprint_changes_with_a_weight():
    clip = make_clip()
    before = clip.fingerprint()
    clip.visual_projection.weight.data[0, 0] += 1e-3
    assert clip.fingerprint() != before
    assert make_clip().fingerprint() == before


@pytest.mark.parametrize("image", ["vit", "resnet"])
def test_fingerprint_changes_with_an_activation(image):
    """The weights are the same, the embeddings are not; only "relu", which all models had once, goes without saying."""
    clip = make_clip(image)
    name, before = ("stem_act" if image == "vit" else "hidden_act"), clip.fingerprint()
    setattr(clip.config.vision_config, name, "silu")
    assert clip.fingerprint() != before
    delattr(clip.config.vision_config, name)
    assert clip.fingerprint() == before


def test_a_clip_without_tokenizer_says_so():
    clip = CLIP(make_clip().config)
    with pytest.raises(ValueError, match="made without a tokenizer"):
        clip.encode_text("a red apple")
    assert len(make_tokenizer()) == make_clip().config.text_config.vocab_size


def test_a_folder_without_a_vocabulary_is_refused(tmp_path):
    save_tiny_clip(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no vocabulary: expected tokenizer.json, or vocab.json and merges.txt"):
        CLIP.from_pretrained(tmp_path)


def test_missing_weights_of_a_transformers_clip_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    save_tiny_clip(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("text_projection")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="weights missing from it: text_projection.weight"):
        CLIP.from_pretrained(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    make_clip().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelError, match=f"{tmp_path.name}: cannot be loaded"):
        CLIP.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config.json is not valid JSON"):
        CLIP.from_pretrained(tmp_path)


def test_preprocessing_under_the_name_of_transformers_5(tmp_path):
    clip = CLIP.from_pretrained(save_tiny_clip(tmp_path))
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert CLIP.from_pretrained(tmp_path).image_processor == clip.image_processor
