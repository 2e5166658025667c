"""The vector-Jacobian product of mode "exact" where the denoiser reads more than the sample, or a part of it."""

import pytest
import torch
from torch import nn

from clip_guidance.guidance.adapters.noise_level import NoiseLevel
from clip_guidance.guidance.adapters.prediction import FLOW, Prediction
from clip_guidance.guidance.engine.tape import DenoiserTape

LEVEL = NoiseLevel(0.4, 0.6)
GIVEN = torch.randn(2, 3, 1, 2, 4, generator=torch.Generator().manual_seed(1))  # a video's first frame
MADE_ANEW = torch.ones(1, 1, 3, 2, 4)
MADE_ANEW[:, :, 0] = 0


class Mixer(nn.Module):
    """Every element of the output depends on every element of the same sample."""

    def forward(self, sample):
        weight = torch.randn(sample[0].numel(), sample[0].numel(), generator=torch.Generator().manual_seed(2))
        return torch.tanh(sample.flatten(1) @ weight / 4).view_as(sample)


def after_a_given_frame(network, x):
    return network(torch.cat([GIVEN, x], 2))[:, :, 1:]


def after_a_given_frame_in_tokens(network, x):
    tokens = torch.cat([GIVEN, x], 2).flatten(2).transpose(1, 2)
    return network(torch.cat([tokens] * 2)).chunk(2)[0].transpose(1, 2).unflatten(2, (-1, 2, 4))[:, :, 1:]


def after_a_given_frame_and_before_more_channels(network, x):
    video = torch.cat([GIVEN, x], 2)
    return network(torch.cat([video, torch.ones_like(video[:, :2])], 1))[:, :3, 1:]


def where_it_is_made_anew(network, x):
    return network(MADE_ANEW * x + (1 - MADE_ANEW) * GIVEN)


@pytest.mark.parametrize(("denoise", "made_anew"), [
    (after_a_given_frame, None),
    (after_a_given_frame_in_tokens, None),
    (after_a_given_frame_and_before_more_channels, None),
    (where_it_is_made_anew, MADE_ANEW),
])  # fmt: skip
def test_the_product_is_that_of_the_whole_map(denoise, made_anew):
    generator, network = torch.Generator().manual_seed(0), Mixer()
    x = torch.randn(2, 3, 3 if made_anew is not None else 2, 2, 4, generator=generator)
    cotangent = torch.randn(x.shape, generator=generator)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(FLOW.to_x0(denoise(network, leaf), leaf, LEVEL), leaf, cotangent)

    tape = DenoiserTape(lambda: True)
    with tape.watch([network]), torch.no_grad():
        output = denoise(network, x)
        tape.made_anew = made_anew
        found = tape.vjp(Prediction(output, x, LEVEL, FLOW), cotangent)
    torch.testing.assert_close(found, expected)


def test_a_sample_that_the_denoiser_does_not_read_is_named():
    tape, network, x = DenoiserTape(lambda: True), Mixer(), torch.randn(2, 3, 3, 2, 4)
    with tape.watch([network]), torch.no_grad():
        output = where_it_is_made_anew(network, x)
        with pytest.raises(ValueError, match=r"copies of the sample \(2, 3, 3, 2, 4\) .* Use mode='x0'"):
            tape.vjp(Prediction(output, x, LEVEL, FLOW), torch.ones_like(x))
