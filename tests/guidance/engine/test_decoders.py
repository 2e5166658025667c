"""Decoders in place of the pipeline's, and in another precision."""

import copy
import importlib
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderTiny
from helpers.decoding import contrast, gradient, latents, with_vae
from helpers.factories import generate
from helpers.memory_fixtures import make_tiny_decoder

from clip_guidance.guidance import CLIPGuidance, Decoding, Guidance
from clip_guidance.guidance.adapters.layouts import already_latents
from clip_guidance.guidance.engine.decoder import Decoder

# ---------------------------------------------------------------- another decoder


def test_a_tiny_decoder_takes_the_place_of_the_pipelines_for_the_reward_only(tiny_pipeline):
    pipe, tiny, seen = tiny_pipeline(), make_tiny_decoder(), []
    x0 = latents(dtype=torch.float32)
    with torch.no_grad():
        expected = tiny.decode(x0).sample.clamp(-1, 1) / 2 + 0.5
    torch.testing.assert_close(Decoder(pipe, "image", Decoding(tiny))(x0).detach(), expected)

    def reward(images):
        seen.append(images.shape)
        return contrast(images)

    with Guidance(reward, decoding=Decoding(tiny)).attach(pipe):
        found = generate(pipe)
        images = generate(pipe, output_type="pt")
    with torch.no_grad():
        decoded = pipe.vae.decode(found / pipe.vae.config.scaling_factor).sample
    torch.testing.assert_close(images, (decoded / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize(
    ("module", "key", "sample"),
    [
        ("unet_other", "KandinskyV22Pipeline", (1, 4, 8, 8)),  # its own is told to skip a quantiser
        ("qwen_and_friends", "QwenImagePipeline", (1, 4, 8, 8)),  # its own reads frames, with other statistics
        ("unet_video", "AnimateDiffPipeline", (1, 4, 3, 8, 8)),
    ],
)
def test_a_tiny_decoder_reads_latents_of_unit_variance_whatever_it_replaces(module, key, sample):
    pipe, _ = importlib.import_module(f"helpers.pipelines.{module}").PIPELINES[key]()
    tiny = make_tiny_decoder()
    decoder = Decoder(pipe, "image", Decoding(tiny))
    decoder.adapter = replace(decoder.adapter, unpack=already_latents)
    x0 = torch.randn(sample, generator=torch.Generator().manual_seed(0))
    images = decoder(x0)
    frames = x0.transpose(1, 2).flatten(0, 1) if x0.ndim == 5 else x0
    expected = tiny.decode(frames).sample.clamp(-1, 1) / 2 + 0.5
    found = images.transpose(1, 2).flatten(0, 1) if x0.ndim == 5 else images
    torch.testing.assert_close(found, expected)


def test_a_decoder_of_ones_own_works_where_the_sample_is(tiny_pipeline):
    tiny = make_tiny_decoder()
    images = Decoder(tiny_pipeline(), "image", Decoding(tiny))(torch.empty(2, 4, 8, 8, device="meta"))
    assert images.shape == (2, 3, 16, 16) and images.is_meta
    assert all(weight.device.type == "cpu" for weight in tiny.parameters())


# ---------------------------------------------------------------- precision


def overflowing(vae, dtype):
    """A decoder whose activations exceed what float16 holds, as those of SDXL's, and whose images do not."""
    vae = copy.deepcopy(vae)
    with torch.no_grad():
        resnet = vae.decoder.mid_block.resnets[0]
        resnet.conv2.weight *= 3e5
    vae.register_to_config(force_upcast=True)
    return vae.to(dtype)


def test_a_float16_decoder_that_overflows_runs_in_bfloat16(tiny_pipeline):
    pipe, x0 = tiny_pipeline(), latents(dtype=torch.float32)
    expected = Decoder(with_vae(pipe, overflowing(pipe.vae, torch.float32)), "image")(x0)
    half = overflowing(pipe.vae, torch.float16)
    with torch.no_grad():
        assert not half.decode((x0 / half.config.scaling_factor).half()).sample.isfinite().all()
    found = gradient(with_vae(pipe, half), Decoding(), x0)
    images = Decoder(with_vae(pipe, half), "image")(x0)
    assert images.dtype == found.dtype == torch.float32
    assert images.isfinite().all() and found.isfinite().all()
    torch.testing.assert_close(images, expected, atol=0.03, rtol=0)
    assert all(weight.dtype == torch.float16 for weight in half.parameters())


@pytest.mark.parametrize("checkpoint", [False, True])
def test_another_precision_can_be_asked_for(tiny_pipeline, checkpoint):
    pipe = tiny_pipeline()
    half = with_vae(pipe, copy.deepcopy(pipe.vae).to(torch.bfloat16))
    x0 = latents(dtype=torch.float32)
    decoding = Decoding(dtype=torch.float32, checkpoint=checkpoint)
    expected = gradient(with_vae(pipe, copy.deepcopy(half.vae).float()), Decoding(), x0)
    torch.testing.assert_close(gradient(half, decoding, x0), expected)
    assert not gradient(half, Decoding(), x0).equal(expected)


class Plain(torch.nn.Module):
    """A decoder that does not tell its precision, as diffusers' networks do."""

    def __init__(self, vae):
        super().__init__()
        self.vae, self.config = vae, vae.config

    def decode(self, latents, **options):
        return self.vae.decode(latents, **options)


def test_the_precision_of_a_decoder_is_that_of_its_weights(tiny_pipeline):
    pipe, x0 = tiny_pipeline(), latents(dtype=torch.float32)
    half = copy.deepcopy(pipe.vae).to(torch.bfloat16)
    expected = Decoder(with_vae(pipe, half), "image")(x0)
    assert Decoder(pipe, "image", Decoding(Plain(half)))(x0).equal(expected)


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"checkpoint": True}, {"dtype": torch.bfloat16}], ids=str)
def test_weights_that_are_cast_layer_by_layer_are_differentiated(tiny_pipeline, storage, options):
    pipe, x0 = tiny_pipeline(), latents(dtype=torch.float32)
    rounded, cast = copy.deepcopy(pipe.vae), copy.deepcopy(pipe.vae)
    for weight in rounded.parameters():
        weight.data = weight.to(storage).float()
    cast.enable_layerwise_casting(storage, torch.float32)
    expected = gradient(with_vae(pipe, rounded), Decoding(**options), x0)
    torch.testing.assert_close(gradient(with_vae(pipe, cast), Decoding(**options), x0), expected)
    assert next(cast.decoder.parameters()).dtype == storage


def test_a_decoder_that_overflows_in_the_float16_it_is_cast_to_runs_in_bfloat16(tiny_pipeline):
    pipe, x0 = tiny_pipeline(), latents(dtype=torch.float32)
    cast = overflowing(pipe.vae, torch.float32)
    cast.enable_layerwise_casting(torch.bfloat16, torch.float16)
    assert gradient(with_vae(pipe, cast), Decoding(), x0).isfinite().all()


def test_a_copy_cannot_be_made_of_weights_that_are_not_there(tiny_pipeline):
    pipe = tiny_pipeline()
    pipe = with_vae(pipe, copy.deepcopy(pipe.vae).to("meta"))
    with pytest.raises(ValueError, match="AutoencoderKL is to compute in torch.bfloat16, .* on the meta device"):
        Decoder(pipe, "image", Decoding(dtype=torch.bfloat16))(latents())


# ---------------------------------------------------------------- what is refused


def wrong_channels(pipe):
    return AutoencoderTiny(latent_channels=16, encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(4,) * 4)


REFUSED = [
    (
        lambda pipe: Decoding(wrong_channels(pipe)),
        "AutoencoderTiny reads latents of 16 channels; those of Stable.* have 4",
    ),
    (lambda pipe: Decoding(torch.nn.Linear(1, 1), checkpoint=True), "checkpoint=True needs a decoder .* Linear cannot"),
]


@pytest.mark.parametrize(("decoding", "message"), REFUSED)
def test_decoders_that_do_not_fit_are_refused_before_anything_changes(tiny_pipeline, clip, decoding, message):
    pipe = tiny_pipeline()
    with pytest.raises(ValueError, match=message), CLIPGuidance(clip, "dog", decoding=decoding(pipe)).attach(pipe):
        pytest.fail("it was attached")
    assert "step" not in vars(pipe.scheduler)
