"""What transformers expects of any model, on our towers and the CLIP: arguments, settings and embeddings.

transformers' own tests of it, ``ModelTesterMixin`` of ``tests/test_modeling_common.py`` in the sources of 5.23, pass on
ViT, ResNet, transformer, CBOW and CLIP but for seven, which are so on purpose:

- ``test_model_get_set_embeddings`` of ViT and ResNet: it expects an ``nn.Embedding``, and images have a convolution.
- ``test_retain_grad_hidden_states_attentions`` of the ResNet: a hidden state is a stage's map, flattened for the
  caller, and the next stage reads the map.
- ``test_hidden_states_output`` and ``test_retain_grad_hidden_states_attentions`` of the CLIP: its states are those of
  its towers, in ``text_model_output`` and ``vision_model_output``, as in transformers' CLIP.
- ``test_from_pretrained_no_checkpoint`` of the CLIP: its first parameter is ``name_or_path``, and a CLIP of weights
  without a folder is ``CLIP(config, tokenizer)``.
- ``test_cannot_load_with_meta_device_context_manager`` of the CLIP: the error is a ``ModelError`` with the same words.
"""

import pytest
import torch
from helpers.factories import PAIRS, TEXTS, image_config, make_clip, make_tokenizer, text_config
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from clip_guidance.clip.tokenizer import tokenize
from clip_guidance.towers import IMAGE_TOWERS, TEXT_TOWERS

KINDS = ("vit", "resnet", "transformer", "cbow")
exact = {"rtol": 0, "atol": 1e-6}


def tower(kind: str, **options):
    """A tower, and its arguments by name."""
    torch.manual_seed(0)
    if kind in IMAGE_TOWERS:
        return IMAGE_TOWERS[kind][1](image_config(kind)).eval(), {"pixel_values": torch.randn(2, 3, 32, 32)}
    config = text_config(kind, make_tokenizer(), **options)
    return TEXT_TOWERS[kind][1](config).eval(), {"input_ids": tokenize(make_tokenizer(), TEXTS)}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_arguments_and_config_ask_for_the_same_outputs(kind):
    model, inputs = tower(kind)
    plain = model(**inputs)
    assert plain.hidden_states is None and plain.attentions is None
    asked = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(asked.hidden_states) >= 3 and (asked.attentions is None) is (kind in ("resnet", "cbow"))
    torch.testing.assert_close(asked.pooler_output, plain.pooler_output, **exact)
    as_tuple = model(**inputs, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], plain[0]) and len(as_tuple[2]) >= 3
    model.set_attn_implementation("eager")
    model.config.output_hidden_states = model.config.output_attentions = True
    configured = model(**inputs)
    assert len(configured.hidden_states) == len(asked.hidden_states)
    assert len(configured.attentions or ()) == len(asked.attentions or ())
    model.config.return_dict = False
    assert isinstance(model(**inputs), tuple) and model(**inputs, return_dict=True).pooler_output is not None


@pytest.mark.parametrize(("kind", "options"), [("vit", {}), ("transformer", {}), ("transformer", {"causal": False})])
@torch.no_grad()
def test_attention_is_the_same_in_both_implementations(kind, options):
    model, inputs = tower(kind, **options)
    assert model.config._attn_implementation == "sdpa"
    fused = model(**inputs, output_hidden_states=True)
    model.set_attn_implementation("eager")
    eager = model(**inputs, output_hidden_states=True, output_attentions=True)
    for ours, other in zip(fused.hidden_states, eager.hidden_states, strict=True):
        torch.testing.assert_close(ours, other, **exact)
    length = fused.last_hidden_state.shape[1]
    for weights in eager.attentions:
        assert weights.shape == (len(fused.pooler_output), model.config.num_attention_heads, length, length)
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    if options.get("causal", kind == "transformer"):
        assert not weights.triu(1).any()


@torch.no_grad()
def test_attentions_are_those_of_transformers():
    model, inputs = tower("vit")
    names = ("image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = CLIPVisionConfig(**{name: getattr(model.config, name) for name in names}, attn_implementation="eager")
    stock = CLIPVisionModel(config).eval()
    model.vision_model.load_state_dict(stock.state_dict())
    theirs = stock(**inputs, output_attentions=True).attentions
    for ours, expected in zip(model(**inputs, output_attentions=True).attentions, theirs, strict=True):
        torch.testing.assert_close(ours, expected, **exact)


def test_gradients_reach_the_states_and_attentions_that_are_returned():
    model, inputs = tower("transformer")
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    wanted = (output.hidden_states[0], output.attentions[0])
    found = torch.autograd.grad(output.pooler_output.sum(), wanted, allow_unused=True)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in found)


@pytest.mark.parametrize("kind", KINDS)
def test_input_embeddings_can_be_replaced(kind):
    model, _ = tower(kind)
    former = model.get_input_embeddings()
    assert any(former is module for module in model.modules())
    new = nn.Embedding(10, 10)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new and all(former is not module for module in model.modules())


def test_buffers_that_no_checkpoint_holds_get_their_first_values():
    model, _ = tower("resnet")
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    for buffer in norm.buffers():
        buffer.fill_(7)
    model._init_weights(norm)
    assert not norm.running_mean.any() and norm.running_var.eq(1).all() and norm.num_batches_tracked == 0


@pytest.mark.parametrize(("image", "text"), PAIRS)
@torch.no_grad()
def test_a_clip_returns_what_its_towers_return(image, text):
    clip = make_clip(image, text)
    inputs = tokenize(clip.tokenizer, TEXTS), torch.randn(2, 3, 32, 32)
    plain = clip(*inputs)
    assert plain.text_model_output is None and plain.vision_model_output is None
    asked = clip(*inputs, output_hidden_states=True, output_attentions=True)
    assert len(asked.vision_model_output.hidden_states) >= 3 and len(asked.text_model_output.hidden_states) >= 3
    assert (asked.text_model_output.attentions is None) is (text == "cbow")
    torch.testing.assert_close(asked.logits_per_image, plain.logits_per_image, rtol=0, atol=1e-5)
    as_tuple = clip(*inputs, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 3 and torch.equal(as_tuple[0], plain.logits_per_image)
    assert clip.get_input_embeddings() is clip.text_encoder.get_input_embeddings()
    clip.set_attn_implementation("eager")
    towers = (clip.config, clip.text_encoder.config, clip.image_encoder.config)
    assert [config._attn_implementation for config in towers] == ["eager"] * 3
    clip.set_attn_implementation({"vision_config": "sdpa"})
    assert [config._attn_implementation for config in towers] == ["eager", "eager", "sdpa"]
