"""The towers: equal to transformers' on the same weights, invariant to padding, drop-in text encoders of diffusers."""

import dataclasses
import itertools

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from helpers.factories import TEXTS, image_config, make_clip, make_tokenizer, text_config
from transformers import AutoModel, CLIPVisionConfig, CLIPVisionModel

from clip_guidance.clip.tokenizer import tokenize
from clip_guidance.towers import IMAGE_TOWERS, TEXT_TOWERS, ResNetConfig, ResNetModel, TextTower, ViTConfig, ViTModel
from clip_guidance.towers.text import token_mask
from clip_guidance.training.tower_settings import TowerSettings

TEXT_KINDS = ("transformer", "cbow")


def text_tower(kind: str, **options) -> TextTower:
    torch.manual_seed(0)
    return TEXT_TOWERS[kind][1](text_config(kind, make_tokenizer(), **options)).eval()


def test_text_transformer_equals_clip_text_model():
    tower = text_tower("transformer")
    stock = tower.to_clip_text_model()
    ids = tokenize(make_tokenizer(), TEXTS)
    ours, theirs = tower(ids, output_hidden_states=True), stock(ids, output_hidden_states=True)
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.pooler_output, theirs.pooler_output, rtol=0, atol=1e-6)
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    for mine, stocks in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(mine, stocks, rtol=0, atol=1e-6)


def test_vit_equals_clip_vision_model():
    config = image_config("vit")
    names = ("image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    stock = CLIPVisionModel(CLIPVisionConfig(**{name: getattr(config, name) for name in names})).eval()
    tower = IMAGE_TOWERS["vit"][1](config).eval()
    tower.vision_model.load_state_dict(stock.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    ours, theirs = tower(pixels, output_hidden_states=True), stock(pixels, output_hidden_states=True)
    torch.testing.assert_close(ours.pooler_output, theirs.pooler_output, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.last_hidden_state, theirs.last_hidden_state, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.hidden_states[-2], theirs.hidden_states[-2], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "options"), [("transformer", {}), ("transformer", {"causal": False}), ("cbow", {})])
def test_pooled_output_ignores_padding(kind, options):
    tower, tokenizer = text_tower(kind, **options), make_tokenizer()
    short = tokenizer(TEXTS[:1], return_tensors="pt").input_ids
    padded = tokenize(tokenizer, TEXTS[:1])
    assert padded.shape[1] > short.shape[1]
    torch.testing.assert_close(tower(padded).pooler_output, tower(short).pooler_output, rtol=0, atol=1e-6)
    mask = token_mask(padded, None, tokenizer.pad_token_id).long()
    torch.testing.assert_close(tower(padded, mask).pooler_output, tower(short).pooler_output, rtol=0, atol=1e-6)


def test_cbow_ignores_order_and_the_transformer_does_not():
    tokenizer = make_tokenizer()
    ids = [tokenize(tokenizer, [text]) for text in ("red apple table", "table apple red")]
    for kind, equal in (("cbow", True), ("transformer", False)):
        first, second = (text_tower(kind)(x).pooler_output for x in ids)
        assert torch.allclose(first, second, atol=1e-5) is equal


def test_a_non_causal_tower_has_no_clip_text_model():
    with pytest.raises(ValueError, match="made with causal=False"):
        text_tower("transformer", causal=False).to_clip_text_model()


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_text_longer_than_the_context_is_refused(kind):
    with pytest.raises(ValueError, match=r"at most 16 tokens, got shape \(1, 17\)"):
        text_tower(kind)(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_images_of_another_size_are_refused(kind):
    tower = IMAGE_TOWERS[kind][1](image_config(kind))
    with pytest.raises(ValueError, match=r"\('B', 3, 32, 32\), got \(1, 3, 30, 32\)"):
        tower(torch.zeros(1, 3, 30, 32))


def test_group_norm_does_not_see_the_batch():
    torch.manual_seed(0)
    tower = ResNetModel(ResNetConfig(image_size=32, hidden_sizes=[16, 32], depths=[1, 1], norm="group")).train()
    pixels = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(tower(pixels).pooler_output[:1], tower(pixels[:1]).pooler_output)
    with pytest.raises(ValueError, match='norm: expected "batch" or "group", got \'layer\''):
        ResNetConfig(norm="layer")


def make_pipeline(encoder: TextTower) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(block_out_channels=(16,), norm_num_groups=8, latent_channels=4)
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    return StableDiffusionPipeline(
        vae, encoder, make_tokenizer(), unet, scheduler, None, None, requires_safety_checker=False
    )


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_drop_in_text_encoder_of_a_stock_pipeline(kind, tmp_path):
    """The prompt matters, ``clip_skip`` works, and the pipeline saves and loads with our class in it."""
    pipe = make_pipeline(text_tower(kind))
    pipe.set_progress_bar_config(disable=True)

    def latents(pipe, prompt, **options):
        generator = torch.Generator().manual_seed(0)
        return pipe(prompt, num_inference_steps=2, generator=generator, output_type="latent", **options).images

    plain = latents(pipe, "a red apple")
    assert not torch.equal(plain, latents(pipe, "a photo of a cat"))
    skipped = latents(pipe, "a red apple", clip_skip=1)
    assert torch.isfinite(skipped).all()
    assert torch.equal(plain, skipped) is (kind == "cbow")  # the bag's hidden states are all the same
    pipe.save_pretrained(tmp_path, safe_serialization=True)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.text_encoder) is type(pipe.text_encoder)
    assert torch.equal(latents(loaded, "a red apple"), plain)


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_what_sdxl_and_textual_inversion_read(kind, tmp_path):
    clip = make_clip(text=kind)
    ids = tokenize(clip.tokenizer, TEXTS)
    states = clip.text_encoder(ids, output_hidden_states=True)
    assert states[0].shape == (4, 16, 32) and len(states.hidden_states) >= 3
    assert states.hidden_states[-2].shape == (4, 16, 32)
    projecting = clip.text_encoder_with_projection()
    assert projecting(ids, output_hidden_states=True)[0].shape == (4, clip.config.projection_dim)
    unit = torch.nn.functional.normalize(projecting(ids).text_embeds, dim=-1)
    torch.testing.assert_close(unit, clip.text_embeds(ids))
    projecting.save_pretrained(tmp_path)
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path)(ids).text_embeds, projecting(ids).text_embeds)
    encoder = clip.text_encoder
    encoder.resize_token_embeddings(len(clip.tokenizer) + 2)
    assert encoder.get_input_embeddings().weight.shape[0] == len(clip.tokenizer) + 2


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_a_vit_with_a_stem_pools_as_its_config_says(pooling):
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        stem_widths=[8, 16, 24],
        pooling=pooling,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    tower = ViTModel(config).eval()
    with torch.no_grad():
        output = tower(torch.randn(3, 3, 32, 32))
        states = output.last_hidden_state
        expected = states.mean(1) if pooling == "mean" else states[:, 0]
        torch.testing.assert_close(output.pooler_output, tower.vision_model.post_layernorm(expected))
    assert states.shape == (3, 17, 32)  # 4 x 4 tokens of 8 pixels, and the class token


def test_a_token_of_the_stem_sees_its_neighbourhood_only():
    config = ViTConfig(image_size=64, patch_size=4, stem_widths=[8, 16], hidden_size=16, num_attention_heads=2)
    stem = ViTModel(config).eval().vision_model.embeddings.patch_embedding
    pixels = torch.randn(1, 3, 64, 64, requires_grad=True)
    stem(pixels)[0, :, 8, 8].sum().backward()
    seen = pixels.grad.abs().sum(1)[0].nonzero()
    assert len(seen) and seen.min() >= 32 - 16 and seen.max() < 36 + 16


def vit_with_stem(act):
    sizes = {"image_size": 32, "patch_size": 4, "stem_widths": [8, 16], "hidden_size": 16, "intermediate_size": 32}
    config = ViTConfig(num_hidden_layers=1, num_attention_heads=2, hidden_act="gelu", stem_act=act, **sizes)
    return ViTModel(config)


def small_resnet(act):
    return ResNetModel(ResNetConfig(image_size=32, hidden_sizes=[8, 16], depths=[1, 1], hidden_act=act))


@pytest.mark.parametrize("make", [vit_with_stem, small_resnet])
@pytest.mark.parametrize(("act", "is_smooth"), [("gelu", True), ("relu", False)])
def test_the_gradient_of_an_image_jumps_with_relu_alone(make, act, is_smooth):
    torch.manual_seed(0)
    tower = make(act).double().eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # a residual branch is 0 at first
    start, way = torch.rand(2, 1, 3, 32, 32, dtype=torch.float64)

    def gradient(place):
        x = (start + place * way).requires_grad_()
        return torch.autograd.grad(tower(x).pooler_output.square().sum(), x)[0]

    def longest_step(count):  # along one line, of 1/100 in all
        along = [gradient(0.01 * i / count) for i in range(count + 1)]
        return max((b - a).norm().item() for a, b in itertools.pairwise(along))

    coarse, fine = longest_step(2), longest_step(32)
    assert (fine < 0.2 * coarse) == is_smooth  # a jump is as high however near one looks


def test_a_stem_that_does_not_make_the_patches_is_refused():
    with pytest.raises(ValueError, match=r"stem_widths \[8, 16\] make patches of side 4, expected .* patch_size 8"):
        ViTConfig(patch_size=8, stem_widths=[8, 16])
    with pytest.raises(ValueError, match='pooling: expected "class" or "mean", got \'max\''):
        ViTConfig(pooling="max")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViTConfig(hidden_size=100, num_attention_heads=3), "hidden_size: expected a multiple of the 3 atten"),
        (lambda: ViTConfig(num_hidden_layers=10**9), "num_hidden_layers: expected 1 to 1000, got 1000000000"),
        (lambda: ViTConfig(image_size=16, patch_size=32), "patch_size: expected 1 to 16, got 32"),
        (lambda: ViTConfig(hidden_act="geluu"), "hidden_act: expected an activation such as gelu, .*got 'geluu'"),
        (lambda: ViTConfig(stem_act="geluu"), "stem_act: expected an activation such as gelu, .*got 'geluu'"),
        (lambda: ResNetConfig(hidden_act=None), "hidden_act: expected an activation such as .*got None"),
        (lambda: text_config("cbow", make_tokenizer(), eos_token_id=[3]), r"eos_token_id: expected the id.*\[3\]"),
        (lambda: text_config("cbow", make_tokenizer(), vocab_size=0), "vocab_size: expected at least 1, got 0"),
        (lambda: text_config("cbow", make_tokenizer(), layer_norm_eps=-1.0), "layer_norm_eps: expected a number"),
        (lambda: ResNetConfig(image_size=8), "image_size: expected at least 16 pixels for 4 stages"),
        (lambda: ResNetConfig(hidden_sizes=[], depths=[]), "hidden_sizes: expected numbers of at least 2"),
        (lambda: ResNetConfig(hidden_sizes=[30, 34], depths=[1, 1], norm="group"), "no groups of equal size"),
    ],
)
def test_settings_of_which_no_tower_can_be_built_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_one_head_is_enough_for_a_narrow_tower():
    sizes = {"image_size": 32, "patch_size": 8, "intermediate_size": 32, "num_hidden_layers": 1}
    tower = ViTModel(ViTConfig(hidden_size=16, num_attention_heads=1, **sizes))
    assert tower(torch.zeros(1, 3, 32, 32)).pooler_output.shape == (1, 16)
    settings = TowerSettings(conv_act="silu", stem_widths=[8, 16], patch_size=4)
    assert settings.image_config().stem_act == "silu"
    assert dataclasses.replace(settings, image_tower="resnet").image_config().hidden_act == "silu"
    assert [TowerSettings(image_width=width).image_config().num_attention_heads for width in (16, 100)] == [1, 2]
