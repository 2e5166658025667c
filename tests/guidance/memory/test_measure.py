"""The bytes that are found without data, against what the CPU's allocator gives out and what autograd saves."""

import copy
import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.hooks import apply_group_offloading
from diffusers.hooks.group_offloading import ModuleGroup
from helpers.allocations import SETTINGS
from helpers.factories import make_clip
from helpers.memory_fixtures import SIDE, VIEWS, estimate, make_guidance, make_wide_pipeline

from clip_guidance.guidance import CLIPReward, Cutouts, Decoding, Guidance, WeightedRewards
from clip_guidance.guidance.adapters.layouts import already_latents
from clip_guidance.guidance.engine.decoder import Decoder
from clip_guidance.guidance.memory import plan as memory
from clip_guidance.guidance.memory.measure import Meter, decoder_bytes, decoder_on_meta
from clip_guidance.guidance.memory.plan import plan_memory
from clip_guidance.guidance.weights.freeze import freeze_parameters


@pytest.fixture(scope="module")
def pipe():
    return make_wide_pipeline()


@pytest.fixture(scope="module")
def guidance():
    return make_guidance()


@pytest.fixture(scope="module")
def ratios():
    helpers = Path(__file__).parents[2] / "helpers"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": str(helpers.parent)}  # read at the start
    command = [sys.executable, str(helpers / "allocations.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("setting", range(len(SETTINGS)))
def test_the_estimate_is_what_the_allocator_gives_out(ratios, setting):
    assert ratios[setting] == pytest.approx(1, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_decoder_keeps_what_autograd_saves(pipe, dtype):
    # In half precision the CPU's kernels allocate for themselves what an accelerator's do not.
    pipe = copy.copy(pipe)
    pipe.vae = copy.deepcopy(pipe.vae).to(dtype)
    latents = torch.randn(2, 4, 16, 16, requires_grad=True)
    saved = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter) and tensor is not latents:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage  # held, so that no address is used again
        return tensor

    with freeze_parameters([pipe.vae]), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        images = Decoder(pipe, "image")(latents)
    found = decoder_bytes(decoder_on_meta(Decoder(pipe, "image")), tuple(latents.shape))
    assert found.kept - images.nbytes == pytest.approx(sum(each.nbytes() for each in saved.values()), rel=0.1)


def test_no_weight_is_counted_and_each_storage_once():
    weight = torch.zeros(100, 100)
    with Meter() as meter:
        x = torch.zeros(10, 100)
        y = x @ weight.t()
        views = [y[:5], y.view(-1), weight[:3], y.relu_()]
        assert meter.held == meter.peak == x.nbytes + y.nbytes
        z = y + 1
        del x, y, views
        assert meter.held == z.nbytes
    assert meter.peak == 3 * z.nbytes


KINDS = [
    ("flux", "FluxPipeline", None),
    ("flux", "Flux2Pipeline", None),
    ("qwen_and_friends", "QwenImagePipeline", None),
    ("qwen_and_friends", "HunyuanImagePipeline", None),
    ("sana", "SanaPipeline", None),
    ("unet_pixels", "DDPMPipeline", None),
    ("video", "WanPipeline", 2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "key", "frames"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_every_kind_of_decoder_is_measured_without_data_as_it_is_with_data(module, key, frames, dtype):
    pipe, _ = importlib.import_module(f"helpers.pipelines.{module}").PIPELINES[key]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(dtype)
    shape = memory._Estimate(Guidance(lambda images: 0), pipe, 32, 48, 1, frames)._latents
    found = decoder_bytes(decoder_on_meta(Decoder(pipe, "image")), (1, *shape))
    decoder = Decoder(pipe, "image")
    decoder.adapter = replace(decoder.adapter, unpack=already_latents)
    with freeze_parameters([decoder.module] if decoder.module is not None else []), Meter() as meter:
        latents = torch.zeros(1, *shape, requires_grad=True)
        images = decoder(latents)
    assert found.images.shape == images.shape and images.shape[-2:] == (32, 48)
    assert found.kept == pytest.approx(meter.held - latents.nbytes, rel=0.02)


@pytest.mark.slow
def test_it_changes_nothing(pipe, guidance):
    guidance.reward.cutouts.reset()
    first = [view(torch.rand(1, 3, 9, 9)).shape for view in guidance.reward.cutouts.views()]
    guidance.reward.cutouts.reset()
    before = {name: (id(weight), weight.clone()) for name, weight in pipe.vae.state_dict(keep_vars=True).items()}
    state = torch.get_rng_state()
    plan_memory(guidance, pipe, "1MiB", SIDE, SIDE, batch=2, tiny=None)
    assert torch.get_rng_state().equal(state)
    assert [view(torch.rand(1, 3, 9, 9)).shape for view in guidance.reward.cutouts.views()] == first
    assert guidance.decoding == "auto" and guidance.reward.chunk is None
    for name, weight in pipe.vae.state_dict(keep_vars=True).items():
        assert id(weight) == before[name][0] and weight.equal(before[name][1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["leaf_level", "block_level", "compiled", "compiled in place"])
def test_offloaded_and_compiled_networks_stay_where_they_are(pipe, guidance, kind, monkeypatch):
    expected = estimate(guidance, pipe, Decoding(checkpoint=True), 1)
    pipe = copy.copy(pipe)
    pipe.vae = copy.deepcopy(pipe.vae)
    if kind == "compiled":
        pipe.vae.decoder = torch.compile(pipe.vae.decoder, backend="eager")
    elif kind == "compiled in place":
        pipe.vae.decoder.compile(backend="eager")
    else:
        cpu = torch.device("cpu")
        apply_group_offloading(pipe.vae, cpu, cpu, kind, num_blocks_per_group=1)
    monkeypatch.setattr(ModuleGroup, "onload_", lambda group: pytest.fail("weights were brought in"))
    assert estimate(guidance, pipe, Decoding(checkpoint=True), 1) == expected


def test_a_reward_that_needs_data_is_refused(pipe):
    def reward(images):
        return images.flatten(1).sum(1) * float(images.mean())

    message = "found by running it on the meta device, .* function does not run there: .*meta"
    with pytest.raises(ValueError, match=message):
        plan_memory(Guidance(reward), pipe, "1GiB", SIDE, SIDE)


@pytest.mark.slow
def test_rewards_in_a_sum_are_divided_into_chunks_too(pipe, guidance):
    alone = estimate(guidance, pipe, Decoding(resolution=0.25), None)
    twofold = Guidance(
        WeightedRewards([(1.0, CLIPReward(make_clip(), "x", Cutouts(VIEWS))), (0.1, lambda x: x.sum((1, 2, 3)))])
    )
    assert estimate(twofold, pipe, Decoding(resolution=0.25), None) == pytest.approx(alone, rel=0.05)
    assert estimate(twofold, pipe, Decoding(resolution=0.25), 1) < 0.6 * alone
