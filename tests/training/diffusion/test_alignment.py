"""The alignment of a UNet's middle block to an image tower: what is compared, and that averages have their own."""

import pytest
import torch
from helpers.factories import make_clip
from torch import nn

from clip_guidance.clip import ModelError
from clip_guidance.data.dataset import CaptionedImages, Row
from clip_guidance.training.diffusion.alignment import AlignedUNet, Alignment, CleanStates, middle_side
from clip_guidance.training.diffusion.denoiser import make_unet
from clip_guidance.training.ema import make_ema_model


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return make_unet([16, 32], 4, 8, 32)


@pytest.fixture
def clip():
    return make_clip()


def images(count, size=32):
    drawn = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return CaptionedImages(drawn, [Row("apple", "noto", ())] * count)


def test_states_are_a_function_of_the_middle_block(unet):
    model, seen = AlignedUNet(unet, 6), []
    unet.mid_block.register_forward_hook(lambda block, inputs, output: seen.append(output))
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([500, 10]), torch.randn(2, 12, 32)
    output = model(x, t, text)
    assert model.middle is None  # nothing of the step is kept
    assert output.states.shape == (2, middle_side(unet) ** 2, 6)
    for row, column in ((0, 0), (1, 3), (3, 2)):  # places in the order of the tower's tokens, by rows
        expected = model.network(seen[0][:, :, row, column])
        torch.testing.assert_close(output.states[:, 4 * row + column], expected)
    torch.testing.assert_close(output.sample, unet(x, t, text).sample)


def test_an_average_hears_its_own_block(unet):
    model = AlignedUNet(unet, 6)
    average = make_ema_model(model, 0.9).eval()
    nn.init.constant_(average.module.network[2].bias, 3.0)
    nn.init.zeros_(average.module.unet.mid_block.resnets[-1].conv2.weight)
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 12, 32)
    assert not average.module(x, t, text).states.allclose(model(x, t, text).states)
    assert model.middle is None and average.module.middle is None


def test_states_are_the_towers_standardised_and_averaged(clip):
    data = images(5)
    pixels = clip.image_processor.differentiable(data.images.float() / 255)
    with torch.no_grad():
        tokens = clip.image_encoder(pixels).last_hidden_state
    side = int(tokens.shape[1] ** 0.5)
    expected = tokens[:, -(side**2) :]  # a class token stands in front
    expected = (expected - expected.mean((0, 1))) / expected.std((0, 1))
    states = CleanStates(clip, data, side, random_flip=True)
    assert states.width == tokens.shape[-1]
    none, every = torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)
    torch.testing.assert_close(states(torch.arange(5), none), expected, atol=1e-4, rtol=1e-4)
    again = CleanStates(clip, CaptionedImages(data.images.flip(-1), data.rows), side)
    found = states(torch.arange(5), every)
    assert not found.allclose(states(torch.arange(5), none))
    cosine = torch.nn.functional.cosine_similarity(found, again(torch.arange(5), none), dim=-1)
    assert cosine.min() > 0.9  # but for whose mean and deviation they are
    halved = tokens[:, -(side**2) :].unflatten(1, (side // 2, 2, side // 2, 2)).mean((2, 4)).flatten(1, 2)
    halved = (halved - halved.mean((0, 1))) / halved.std((0, 1))
    coarse = CleanStates(clip, data, side // 2)(torch.tensor([3]), none[:1])
    torch.testing.assert_close(coarse, halved[3:4], atol=1e-4, rtol=1e-4)


def test_the_term_is_0_at_the_tower_and_ends(clip):
    states = CleanStates(clip, images(3), 2)
    alignment = Alignment(states, 0.5, steps=10)
    indices, upright = torch.tensor([2, 0]), torch.zeros(2, dtype=torch.bool)
    wanted = states(indices, upright)
    assert alignment(2 * wanted, indices, upright) == pytest.approx(0, abs=1e-6)
    assert alignment(-wanted, indices, upright) == pytest.approx(2, abs=1e-6)
    assert [alignment.weight(step) for step in (0, 9, 10)] == [0.5, 0.5, 0.0]


def test_states_in_no_square_are_refused(clip, monkeypatch):
    class Tokens(nn.Module):
        def forward(self, pixels):
            return type("Output", (), {"last_hidden_state": torch.zeros(len(pixels), 7, 3)})()

    monkeypatch.setattr(clip, "image_encoder", Tokens())
    with pytest.raises(ModelError, match=r"--alignment: expected an image tower with states in a square, got 6"):
        CleanStates(clip, images(2), 2)
