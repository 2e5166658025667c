"""Our CLIP as a folder of transformers and of open_clip, and back: equal to the libraries' own forward passes."""

import dataclasses
import json

import pytest
import torch
from helpers.factories import TEXTS, make_clip
from helpers.open_clip import OpenCLIP
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from clip_guidance.clip import CLIP, CLIPConfig
from clip_guidance.clip.export import save_open_clip, save_transformers, to_transformers
from clip_guidance.clip.tokenizer import tokenize
from clip_guidance.towers import TransformerTextConfig, ViTConfig

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
exact = {"rtol": 0, "atol": 1e-6}


def varied(**vision) -> CLIP:
    """A CLIP with every setting that the formats hold apart from its default, and biases that are not zero."""
    torch.manual_seed(1)
    given = make_clip()
    text = {**given.config.text_config.to_dict(), "layer_norm_eps": 1e-3, "hidden_act": "gelu", "intermediate_size": 70}
    sizes = {"hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 50}
    vision = {"image_size": 32, "patch_size": 8, "hidden_act": "gelu", "layer_norm_eps": 1e-4, **sizes, **vision}
    clip = CLIP(CLIPConfig(text_config=text, vision_config=ViTConfig(**vision), projection_dim=20), given.tokenizer)
    for name, parameter in clip.named_parameters():
        if name != "logit_scale":
            torch.nn.init.normal_(parameter, std=0.3)
    return clip.eval()


def equal(found: CLIP, clip: CLIP) -> None:
    torch.testing.assert_close(found.encode_text(TEXTS), clip.encode_text(TEXTS), **exact)
    torch.testing.assert_close(found.image_embeds(PIXELS), clip.image_embeds(PIXELS), **exact)
    assert torch.equal(found.logit_scale, clip.logit_scale)


def test_a_folder_of_transformers_equals_our_clip(tmp_path):
    clip = varied()
    save_transformers(clip, tmp_path)
    theirs, tokenizer = CLIPModel.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = theirs(**inputs, pixel_values=PIXELS)
        expected = clip(inputs.input_ids, PIXELS)
    torch.testing.assert_close(expected.text_embeds, output.text_embeds, **exact)
    torch.testing.assert_close(expected.image_embeds, output.image_embeds, **exact)
    torch.testing.assert_close(expected.logits_per_image, output.logits_per_image, rtol=0, atol=1e-5)
    assert output.text_embeds.std() > 0.1 and CLIPImageProcessorPil.from_pretrained(tmp_path).size.shortest_edge == 32
    back = CLIP.from_pretrained(tmp_path)
    equal(back, clip)
    assert back.fingerprint() == clip.fingerprint()


def test_a_folder_of_open_clip_equals_our_clip(tmp_path):
    clip = varied()
    save_open_clip(clip, tmp_path / "clip", repository="owner/clip")
    described = json.loads((tmp_path / "clip" / "open_clip_config.json").read_text())
    peer = OpenCLIP(described["model_cfg"]).eval()
    weights = load_file(tmp_path / "clip" / "open_clip_model.safetensors")
    peer.load_state_dict({"attn_mask": peer.attn_mask, **weights})
    ids = tokenize(AutoTokenizer.from_pretrained(tmp_path / "clip"), TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(clip.text_embeds(ids), peer.encode_text(ids), **exact)
        torch.testing.assert_close(clip.image_embeds(PIXELS), peer.encode_image(PIXELS), **exact)
    assert described["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "owner/clip"
    assert described["preprocess_cfg"]["resize_mode"] == "shortest"
    equal(CLIP.from_pretrained(tmp_path / "clip"), clip)


def test_an_end_token_of_the_largest_id_and_quick_gelu_are_open_clips_defaults(tmp_path):
    clip = make_clip()
    text = TransformerTextConfig(**{**clip.config.text_config.to_dict(), "vocab_size": clip.tokenizer.eos_token_id + 1})
    config = CLIPConfig(text_config=text, vision_config=clip.config.vision_config, projection_dim=8)
    save_open_clip(CLIP(config, clip.tokenizer).half(), tmp_path)
    model_cfg = json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]
    assert model_cfg["quick_gelu"] and not {"pool_type", "eos_id", "norm_kwargs"} & model_cfg["text_cfg"].keys()
    assert CLIP.from_pretrained(tmp_path, dtype="auto").dtype == torch.float16
    assert CLIP.from_pretrained(tmp_path).dtype == torch.float32


@pytest.mark.parametrize("save", [save_transformers, pytest.param(save_open_clip, marks=pytest.mark.slow)])
def test_what_has_no_equal_is_named(save, tmp_path):
    refused = {
        "an image tower that is a ResNet": make_clip("resnet"),
        "a text tower that is a bag of words": make_clip(text="cbow"),
        r"a convolutional stem \(stem_widths \[8, 8, 8\]\)": varied(stem_widths=[8, 8, 8]),
        'an image tower with pooling "mean"': varied(pooling="mean"),
        "with causal=False": changed(causal=False),
    }
    for message, clip in refused.items():
        with pytest.raises(ValueError, match=f"(transformers|open_clip) has no CLIP with .*{message}") as caught:
            save(clip, tmp_path / "folder")
        assert len(str(caught.value)) <= 300
    with pytest.raises(ValueError, match="this CLIP has none"):
        save(CLIP(make_clip().config), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def changed(**text) -> CLIP:
    clip = make_clip()
    for name, value in text.items():
        setattr(clip.config.text_config, name, value)
    return clip


def test_what_open_clip_or_transformers_alone_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match="in both towers, got hidden_act 'quick_gelu' and 'relu'"):
        save_open_clip(changed(hidden_act="relu"), tmp_path)
    with pytest.raises(ValueError, match="channels, got num_channels 1"):
        save_open_clip(varied(num_channels=1), tmp_path)
    with pytest.raises(ValueError, match="where eos_token_id is 2"):
        to_transformers(changed(eos_token_id=2))
    clip = make_clip()
    clip.image_processor = dataclasses.replace(clip.image_processor, resize_to=40)
    with pytest.raises(ValueError, match="the size 32 of its images, got resize_to=40"):
        save_open_clip(clip, tmp_path)
