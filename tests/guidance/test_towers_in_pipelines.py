"""Trained towers as the text encoders of stock SDXL, Stable Diffusion 3 and Flux: drawn with, extended, adapted, saved.

The peer is the stock encoder with the same weights in the same pipeline.
"""

import copy
import inspect

import diffusers as d
import pytest
import torch
from helpers.factories import TEXTS, make_clip
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import AutoModel, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from clip_guidance.clip.tokenizer import tokenize

TEXT_KINDS = ("transformer", "cbow")
SD3 = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8}
SD3 |= {"num_attention_heads": 2, "caption_projection_dim": 16, "pos_embed_max_size": 16}
FLUX = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}


def awaken(module):
    """Random weights for the layers that start as zeros, lest the prompt does nothing."""
    for parameter in module.parameters():
        if not parameter.any():
            parameter.data = 0.1 * torch.randn(parameter.shape)
    return module.eval()


def build(cls, **parts):
    """A pipeline of the given parts; all others are None."""
    names = [n for n, p in inspect.signature(cls.__init__).parameters.items() if p.default is p.empty and n != "self"]
    pipe = cls(**{**dict.fromkeys(names), **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def vae():
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model = d.AutoencoderKL(block_out_channels=(4, 8), norm_num_groups=2, latent_channels=4, shift_factor=0.1, **blocks)
    return model.eval()


def two_clips(text):
    clips = make_clip(text=text, seed=0), make_clip(text=text, seed=1)
    for clip in clips:
        clip.tokenizer = copy.deepcopy(clip.tokenizer)  # pipelines add tokens to theirs
    return clips


def sdxl(text, encoders):
    first, second = two_clips(text)
    unet = d.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * first.config.text_config.hidden_size,
        addition_embed_type="text_time",
        addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=second.config.projection_dim + 6 * 2,
    )
    return build(
        d.StableDiffusionXLPipeline,
        unet=awaken(unet),
        vae=vae(),
        scheduler=d.EulerDiscreteScheduler(),
        **encoders(text_encoder=first.text_encoder, text_encoder_2=second.text_encoder_with_projection()),
        tokenizer=first.tokenizer,
        tokenizer_2=second.tokenizer,
    )


def sd3(text, encoders):
    clips = two_clips(text)
    width, size = clips[0].config.text_config.hidden_size, clips[0].config.projection_dim
    towers = [clip.text_encoder_with_projection() for clip in clips]
    return build(
        d.StableDiffusion3Pipeline,
        transformer=awaken(
            d.SD3Transformer2DModel(**SD3, joint_attention_dim=2 * width, pooled_projection_dim=2 * size)
        ),
        vae=vae(),
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        **encoders(text_encoder=towers[0], text_encoder_2=towers[1]),
        tokenizer=clips[0].tokenizer,
        tokenizer_2=clips[1].tokenizer,
    )


def flux(text, encoders):
    """Reads the pooled state alone of a CLIP; the sequence is T5's."""
    clip, _ = two_clips(text)
    width = clip.config.text_config.hidden_size
    t5 = T5Config(vocab_size=len(clip.tokenizer), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    t5 = T5EncoderModel(t5).eval()
    shapes = {"joint_attention_dim": width, "pooled_projection_dim": width, "axes_dims_rope": (2, 2, 4)}
    return build(
        d.FluxPipeline,
        transformer=awaken(d.FluxTransformer2DModel(**FLUX, **shapes)),
        vae=vae(),
        scheduler=d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        **encoders(text_encoder=clip.text_encoder),
        text_encoder_2=t5,
        tokenizer=clip.tokenizer,
        tokenizer_2=clip.tokenizer,
    )


BUILDERS = {"sdxl": sdxl, "sd3": sd3, "flux": flux}


def make(name, text="transformer", encoders=dict):
    torch.manual_seed(0)
    return BUILDERS[name](text, encoders)


def draw(pipe, prompt, **options):
    """An image (3, 16, 16) in [0, 1]; what other encoders read stays the same, so the prompt speaks through ours."""
    if isinstance(pipe, d.FluxPipeline):
        options |= {"prompt_2": "an image", "max_sequence_length": 16}
    generator = torch.Generator().manual_seed(0)
    size = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "pt"}
    return pipe(prompt, generator=generator, **size, **options).images[0]


def stock(**towers):
    """The stock encoders with the same weights."""
    return {
        name: tower.to_clip_text_model()
        if tower.text_projection is None
        else tower.to_clip_text_model_with_projection()
        for name, tower in towers.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXT_KINDS)
@pytest.mark.parametrize("name", BUILDERS)
def test_a_tower_draws_and_its_prompt_matters(name, text, tmp_path):
    pipe = make(name, text)
    apple = draw(pipe, "a red apple")
    assert apple.shape == (3, 16, 16) and apple.isfinite().all()
    assert draw(pipe, "a red apple").equal(apple) and not draw(pipe, "a photo of a cat").equal(apple)
    pipe.save_pretrained(tmp_path, safe_serialization=True)
    absent = {part: None for part, held in pipe.components.items() if held is None}  # SD3 asks for all it could have
    loaded = type(pipe).from_pretrained(tmp_path, use_safetensors=True, **absent)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.text_encoder) is type(pipe.text_encoder)
    torch.testing.assert_close(draw(loaded, "a red apple"), apple)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_the_stock_encoder_with_the_same_weights_draws_the_same(name):
    ours, theirs = make(name), make(name, encoders=stock)
    assert type(theirs.text_encoder) in (CLIPTextModel, CLIPTextModelWithProjection)
    for options in ({}, *([{"clip_skip": 1}] if name != "flux" else [])):
        torch.testing.assert_close(draw(ours, TEXTS[1], **options), draw(theirs, TEXTS[1], **options))


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_clip_skip_reads_another_layer(name):
    pipe = make(name)
    assert not draw(pipe, "a red apple", clip_skip=1).equal(draw(pipe, "a red apple"))


def test_the_projecting_stock_encoder_has_equal_states():
    clip = make_clip()
    tower = clip.text_encoder_with_projection()
    ids = tokenize(clip.tokenizer, TEXTS)
    ours, theirs = (m(ids, output_hidden_states=True) for m in (tower, tower.to_clip_text_model_with_projection()))
    torch.testing.assert_close(ours.text_embeds, theirs.text_embeds)
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state)
    for mine, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(mine, other)
    with pytest.raises(ValueError, match=r"this tower has no projection; CLIP\.text_encoder_with_projection\(\) does"):
        clip.text_encoder.to_clip_text_model_with_projection()


@pytest.mark.parametrize("kind", TEXT_KINDS)
@pytest.mark.parametrize("name", [pytest.param("sdxl", marks=pytest.mark.slow), "flux"])
def test_a_textual_inversion_loads(name, kind):
    """The new token means what its embedding says; Stable Diffusion 3 has no loader for one."""
    pipe = make(name, kind)
    embeddings = pipe.text_encoder.get_input_embeddings().weight
    known = pipe.tokenizer.convert_tokens_to_ids("apple</w>")
    assert known != pipe.tokenizer.unk_token_id
    before = draw(pipe, "a red apple")
    prompt = {"prompt_2": "a red apple"} if name == "sdxl" else {}  # the second encoder has not learnt the token
    pipe.load_textual_inversion({"<mine>": embeddings[known].detach().clone()}, token="<mine>")
    assert pipe.text_encoder.get_input_embeddings().num_embeddings == len(pipe.tokenizer)
    torch.testing.assert_close(draw(pipe, "a red <mine>", **prompt), before)
    torch.testing.assert_close(draw(pipe, "a red apple"), before)  # and known ones what they meant


def lora_weights(tower):
    """Adapters of random weights on the attention of a tower, named as diffusers' training scripts name them."""
    targets = ["q_proj", "k_proj", "v_proj", "out_proj"]
    tower.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    weights = get_peft_model_state_dict(tower)
    return {name: 0.5 * torch.randn(value.shape) for name, value in weights.items()}


@pytest.mark.parametrize("name", [pytest.param(each, marks=[pytest.mark.slow] * (each != "sd3")) for each in BUILDERS])
def test_a_lora_on_the_text_encoder_loads(name, tmp_path):
    """It changes the image as it does with the stock encoder, and goes again."""
    trained, ours, theirs = make(name), make(name), make(name, encoders=stock)
    torch.manual_seed(1)
    layers = {"text_encoder_lora_layers": lora_weights(trained.text_encoder)}
    type(trained).save_lora_weights(tmp_path, **layers)
    before = draw(ours, "a red apple")
    for pipe in (ours, theirs):
        pipe.load_lora_weights(tmp_path, adapter_name="mine")
    adapted = draw(ours, "a red apple")
    assert (adapted - before).abs().max() > 1e-4
    torch.testing.assert_close(adapted, draw(theirs, "a red apple"))
    ours.unload_lora_weights()
    torch.testing.assert_close(draw(ours, "a red apple"), before)


def test_a_lora_trained_on_the_stock_encoder_loads_into_the_stock_one(tmp_path):
    """Its names lack "text_model.", as transformers 5's CLIPTextModel does: diffusers finds none of our layers."""
    trained, ours, theirs = make("flux", encoders=stock), make("flux"), make("flux", encoders=stock)
    d.FluxPipeline.save_lora_weights(tmp_path, text_encoder_lora_layers=lora_weights(trained.text_encoder))
    before = draw(theirs, "a red apple")
    theirs.load_lora_weights(tmp_path)
    assert (draw(theirs, "a red apple") - before).abs().max() > 1e-4
    with pytest.raises(IndexError):
        ours.load_lora_weights(tmp_path)


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_auto_model_loads_what_was_saved(kind, tmp_path):
    """A whole CLIP, its text tower, and that with the projection; tests of the package's own loader are elsewhere."""
    clip = make_clip(text=kind)
    ids = tokenize(clip.tokenizer, TEXTS)
    for number, model in enumerate((clip, clip.text_encoder, clip.text_encoder_with_projection())):
        model.save_pretrained(tmp_path / str(number))
        loaded = AutoModel.from_pretrained(tmp_path / str(number))
        assert type(loaded) is type(model) and not loaded.training
        assert all(value.equal(loaded.state_dict()[key]) for key, value in model.state_dict().items())
    assert AutoModel.from_pretrained(tmp_path / "0").encode_text(TEXTS).equal(clip.encode_text(TEXTS))
    assert AutoModel.from_pretrained(tmp_path / "0", dtype=torch.float64).dtype == torch.float64
    assert AutoModel.from_pretrained(tmp_path / "1")(ids)[0].equal(clip.text_encoder(ids)[0])
    with pytest.raises(TypeError, match="from_pretrained: unknown option devise_map; did you mean device"):
        AutoModel.from_pretrained(tmp_path / "0", devise_map="auto")
