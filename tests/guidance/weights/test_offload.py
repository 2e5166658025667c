"""Guidance of pipelines that save memory themselves: offloaded, sliced, tiled."""

import copy

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import ModelHook, UserCpuOffloadHook, add_hook_to_module
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import ModuleGroup
from helpers.factories import generate, make_clip, make_pipeline
from helpers.minimal_pipeline import exact_first
from helpers.noisy_towers import make_tower

from clip_guidance.guidance import CLIPGuidance, Decoding, Guidance
from clip_guidance.guidance.modes.noisy import Noisy

CPU = torch.device("cpu")
CLIP = make_clip()


def images(pipe, mode=None, decoding=None):
    """Of a run that is guided in a mode, or of an unguided one."""
    if mode is None:
        return generate(pipe, seeds=(0, 1), num_images_per_prompt=2, output_type="pt")
    with CLIPGuidance(CLIP, "a red apple", scale=20.0, mode=mode, decoding=decoding).attach(pipe):
        return images(pipe)


def check(pipe, mode, decoding=None, tolerance=0.0):
    """That the pipeline steers as one that saves nothing, and that steering shows."""
    plain = make_pipeline()
    expected = images(plain, mode, decoding)
    assert (expected - images(plain)).abs().max() > 0.01
    torch.testing.assert_close(images(pipe, mode, decoding), expected, atol=tolerance, rtol=0)


# ---------------------------------------------------------------- whole networks


class Sent(UserCpuOffloadHook):
    """A neighbour on an accelerator; counts how often it is sent away."""

    def __init__(self, hook):
        super().__init__(torch.nn.Linear(1, 1, device="meta"), hook)
        self.count = 0

    def offload(self):
        self.count += 1


def offloaded(twice=False):
    """As ``enable_model_cpu_offload`` does it, with the CPU for the accelerator."""
    pipe, previous = make_pipeline(), None
    for name in ("text_encoder", "unet", "vae"):
        if twice:
            add_hook_to_module(getattr(pipe, name), ModelHook())
        _, previous = cpu_offload_with_hook(getattr(pipe, name), CPU, previous)
    hook = pipe.vae._hf_hook.hooks[-1] if twice else pipe.vae._hf_hook
    hook.prev_module_hook = sent = Sent(hook.prev_module_hook.hook)
    return pipe, sent


@pytest.mark.parametrize("twice", [pytest.param(False, marks=pytest.mark.slow), True])
@exact_first
def test_a_decoder_that_wakes_at_a_step_leaves_the_denoiser_where_it_is(mode, twice):
    pipe, sent = offloaded(twice)
    check(pipe, mode)
    assert sent.count == 1  # for the final image


def test_without_guidance_everything_is_offloaded_as_before():
    pipe, sent = offloaded()
    hooks = {name: module._hf_hook for name, module in pipe.components.items() if hasattr(module, "_hf_hook")}
    images(pipe, "exact")
    assert {name: module._hf_hook for name, module in pipe.components.items() if hasattr(module, "_hf_hook")} == hooks
    assert pipe.vae._hf_hook.prev_module_hook is sent


@exact_first
def test_layers_whose_weights_come_one_by_one_steer_as_others(mode):
    pipe = make_pipeline()
    for name in ("unet", "vae"):
        cpu_offload(getattr(pipe, name), CPU)
    assert all(weight.is_meta for weight in pipe.unet.parameters())
    check(pipe, mode)
    assert all(weight.is_meta for weight in pipe.unet.parameters())


def test_a_tower_is_checked_against_an_autoencoder_whose_weights_come_one_by_one():
    mode = Noisy(make_tower(make_pipeline().vae))
    pipe = make_pipeline()
    for name in ("unet", "vae"):
        cpu_offload(getattr(pipe, name), CPU)
    check(pipe, mode)


# ---------------------------------------------------------------- groups of layers


@pytest.fixture
def counted(monkeypatch):
    """Weights that are sent away are not a number until they are brought in: the CPU has no other place for them."""
    away, calls = {}, {"onload": 0, "offload": 0}

    def weights(group):
        return {id(weight): weight for module in group.modules for weight in module.parameters()} | {
            id(weight): weight for weight in group.parameters
        }

    def offload(group):
        calls["offload"] += 1
        for identity, weight in weights(group).items():
            if identity not in away:
                away[identity] = weight, weight.detach().clone()  # held, so that no identity is used again
                weight.data = torch.full_like(weight, torch.nan)

    def onload(group):
        calls["onload"] += 1
        for identity, weight in weights(group).items():
            if identity in away:
                weight.data = away.pop(identity)[1]

    monkeypatch.setattr(ModuleGroup, "offload_", offload)
    monkeypatch.setattr(ModuleGroup, "onload_", onload)
    return calls


def grouped(kind, names=("unet", "vae")):
    pipe = make_pipeline()
    for name in names:
        options = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        apply_group_offloading(getattr(pipe, name), CPU, CPU, kind, **options)
    return pipe


def away(network):
    return all(weight.isnan().all() for weight in network.parameters())


kinds = pytest.mark.parametrize("kind", ["leaf_level", pytest.param("block_level", marks=pytest.mark.slow)])


@kinds
@exact_first
@pytest.mark.parametrize("checkpoint", [pytest.param(False, marks=pytest.mark.slow), True])
def test_weights_of_a_group_are_in_place_in_the_backward(counted, kind, mode, checkpoint):
    pipe = grouped(kind)
    check(pipe, mode, Decoding(checkpoint=checkpoint))
    assert away(pipe.unet) and away(pipe.vae.decoder)
    assert all("offload_" not in vars(group) for group in groups(pipe.unet) + groups(pipe.vae))


def groups(network):
    hooks = [
        module._diffusers_hook.get_hook("group_offloading")
        for module in network.modules()
        if hasattr(module, "_diffusers_hook")
    ]
    return [hook.group for hook in hooks if hook is not None]


@pytest.mark.slow
@kinds
def test_the_denoiser_comes_and_goes_as_often_as_without_guidance(counted, kind):
    def denoisers_calls(mode):
        pipe = grouped(kind, ["unet"])
        counted.update(onload=0, offload=0)
        images(pipe, mode)
        return dict(counted)

    assert denoisers_calls("x0") == denoisers_calls(None)


@kinds
def test_weights_go_away_after_a_backward_that_failed(counted, kind):
    pipe = grouped(kind)

    def broken(images):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), Guidance(broken, mode="exact").attach(pipe):
        generate(pipe)
    assert away(pipe.unet) and away(pipe.vae.decoder)


@kinds
def test_a_copy_in_another_precision_is_made_of_weights_that_are_away(counted, kind):
    decoding = Decoding(dtype=torch.bfloat16)
    pipe = grouped(kind, ["vae"])
    check(pipe, "x0", decoding)
    assert away(pipe.vae.decoder)


# ---------------------------------------------------------------- slices and tiles


def with_attention(pipe):
    pipe.enable_attention_slicing(1)


def with_vae_slicing(pipe):
    pipe.vae.enable_slicing()


def with_tiles_larger_than_the_image(pipe):
    pipe.vae.enable_tiling()
    assert pipe.vae.tile_latent_min_size >= 8


@pytest.mark.slow
@pytest.mark.parametrize("save", [with_attention, with_vae_slicing, with_tiles_larger_than_the_image])
@exact_first
def test_slices_give_the_same_images(save, mode):
    pipe = make_pipeline()
    save(pipe)
    check(pipe, mode, tolerance=1e-4)


@pytest.mark.slow
@exact_first
def test_tiles_are_differentiated(mode):
    """They overlap and are blended, so the image is another one; the gradient is that of the blended image."""
    pipe = make_pipeline()
    pipe.vae.enable_tiling()
    pipe.vae.tile_latent_min_size, pipe.vae.tile_sample_min_size = 4, 8
    guided, plain = images(pipe, mode), images(pipe)
    assert (
        CLIPGuidance(CLIP, "a red apple").reward(guided).mean() > CLIPGuidance(CLIP, "a red apple").reward(plain).mean()
    )
    assert not guided.equal(images(copy.copy(make_pipeline()), mode))
