"""Affine heads beside the layers that they are multiplied out from."""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from clip_guidance.rewards.base import RewardError
from clip_guidance.rewards.heads import folded


def layers(*widths: int) -> nn.Sequential:
    """The improved aesthetic predictor's own module, whose linear layers have the numbers 0, 2, 4, 6, 7."""
    torch.manual_seed(0)
    linear = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)]
    one, two, three, four, five = linear
    return nn.Sequential(one, nn.Dropout(0.2), two, nn.Dropout(0.2), three, nn.Dropout(0.1), four, five).eval()


@pytest.mark.parametrize("prefix", ["", "layers.", "mlp.layers."])
def test_five_layers_are_one(prefix):
    peer = layers(24, 16, 12, 8, 4, 1)
    weight, bias = folded({prefix + k: v for k, v in peer.state_dict().items()}, 24, "head")
    embeds = torch.randn(6, 24)
    torch.testing.assert_close(embeds @ weight + bias, peer(embeds)[:, 0], rtol=1e-5, atol=1e-6)


def test_a_single_layer_is_itself(shared_data):
    head = load_file(shared_data / "scorers" / "laion_aesthetic_vit_l_14.safetensors")
    golden = load_file(shared_data / "scorers" / "laion_aesthetic_vit_l_14_golden.safetensors")
    weight, bias = folded(head, 768, "head")
    torch.testing.assert_close(golden["embeddings"] @ weight + bias, golden["scores"].float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, r"expected a weight and a bias per linear layer, got \[\]"),
        ({"weight": torch.zeros(1, 4)}, r"expected a weight and a bias per linear layer, got \['weight'\]"),
        ({"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, "expected one output, got 2"),
        ({"weight": torch.zeros(1, 5), "bias": torch.zeros(1)}, "layers that do not fit each other"),
        ({"0.weight": torch.zeros(3, 4), "0.bias": torch.zeros(2)}, "layers that do not fit each other"),
        ({"running_mean": torch.zeros(1)}, "expected weights and biases of linear layers, got running_mean"),
    ],
)
def test_another_network_is_named(weights, message):
    with pytest.raises(RewardError, match=f"head: {message}"):
        folded(weights, 4, "head")
