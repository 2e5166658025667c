"""Copies of networks with other weights."""

import copy

import pytest
import torch
from accelerate import cpu_offload_with_hook
from diffusers.hooks import apply_group_offloading
from helpers.factories import make_clip, make_pipeline
from torch import nn

from clip_guidance.guidance.weights.clone import clone

CPU = torch.device("cpu")


class Tied(nn.Module):
    """A layer under two names, and a weight in two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.again = self.first
        self.second.weight = self.first.weight
        self.nothing = None
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x):
        return self.second(self.first(x)) * self.count


def as_it_is(weight):
    return weight.clone()


def test_a_copy_computes_the_same_from_weights_of_its_own():
    network, x = Tied(), torch.randn(2, 3)
    found = clone(network, as_it_is)
    assert found(x).equal(network(x)) and type(found) is Tied
    assert found.again is found.first and found.second.weight is found.first.weight
    with torch.no_grad():
        found.first.weight.zero_()
    assert network.first.weight.any()
    assert network.first.weight.requires_grad and not any(weight.requires_grad for weight in found.parameters())


def test_each_weight_and_buffer_is_made_once():
    made = []
    clone(Tied(), lambda weight: made.append(weight) or weight)
    assert len(made) == 4  # a weight, two biases, the buffer


@pytest.mark.parametrize("network", [make_pipeline().vae, make_pipeline().unet, make_clip().image_encoder])
def test_a_copy_without_data_has_the_same_shapes(network):
    found = clone(network, lambda weight: torch.empty_like(weight, device="meta"))
    assert {name: w.shape for name, w in found.state_dict().items()} == {
        name: w.shape for name, w in network.state_dict().items()
    }
    assert found.device.type == "meta" and network.device.type == "cpu"
    assert found.config is network.config


HOOKED = {
    "whole": lambda vae: cpu_offload_with_hook(vae, CPU),
    "layers": lambda vae: apply_group_offloading(vae, CPU, CPU, "leaf_level"),
    "compiled in place": lambda vae: vae.decoder.compile(backend=refusing),
    "compiled": lambda vae: setattr(vae, "decoder", torch.compile(vae.decoder, backend=refusing)),
}


def refusing(graph, inputs):
    raise AssertionError("it was compiled")


@pytest.mark.parametrize("hook", HOOKED.values(), ids=HOOKED)
def test_hooks_and_compiled_code_stay_with_the_original(hook):
    vae = make_pipeline().vae
    latents = torch.randn(1, 4, 8, 8)
    expected = copy.deepcopy(vae).decode(latents).sample
    hook(vae)
    found = clone(vae, as_it_is)
    assert found.decode(latents).sample.equal(expected)
    left = ("_hf_hook", "_diffusers_hook", "_old_forward", "forward", "_compiled_call_impl")
    assert not any(name in vars(module) for module in found.modules() for name in left)
    assert any(name in vars(m) for m in vae.modules() for name in left) or hasattr(vae.decoder, "_orig_mod")


def test_a_forward_that_someone_put_in_place_is_kept():
    network = nn.Linear(2, 2)
    network.forward = lambda x: x + 1
    assert clone(network, as_it_is)(torch.zeros(2)).tolist() == [1, 1]
