"""Images moved against their names: where to, how far, and that training needs no more than that."""

import pytest
import torch
from tiny import make_clip

from clip_guidance.training.adversarial import moved_against
from clip_guidance.training.class_names import NameLoss
from clip_guidance.training.objective import ContrastiveObjective

NAMES = ["apple", "cat", "table", "red cat"]


def images(count=6, side=32):
    generator = torch.Generator().manual_seed(0)
    return 0.25 + 0.5 * torch.rand(count, 3, side, side, generator=generator, dtype=torch.float64)


def test_a_linear_loss_moves_them_along_its_weights():
    """Its gradient is the same everywhere, so the start does not matter: x' − x = r·w/‖w‖ with r in [0, radius]."""
    torch.manual_seed(0)  # a mean of 200 lengths is off by three standard errors once in 370 runs
    weights, x = torch.randn(3, 32, 32, dtype=torch.float64), images(200)
    shift = moved_against(x, lambda y: (weights * y).sum((1, 2, 3)), radius=0.2) - x
    lengths = shift.flatten(1).norm(dim=1)
    along = (shift * weights).sum((1, 2, 3)) / weights.norm()
    torch.testing.assert_close(along, lengths, rtol=1e-9, atol=1e-12)
    assert lengths.min() >= 0 and lengths.max() <= 0.2
    assert lengths.mean() == pytest.approx(0.1, abs=0.012)  # uniform: 3 standard errors


def test_they_stay_images_and_noise_is_not_cut():
    x = images()
    x[0], x[1, 0, 0, 0] = 1.0, 1.3  # white, and noise that leads outside
    moved = moved_against(x, lambda y: (100 * y).sum((1, 2, 3)), radius=5.0)
    assert torch.equal(moved[0], x[0])  # nowhere to go
    assert moved[1, 0, 0, 0] == 1.3 and moved[2:].max() <= 1
    assert (moved[2:] > x[2:]).any()


def test_each_image_moves_by_its_own_loss_and_no_parameter_hears_of_it():
    clip = make_clip().double().eval()
    clip.text_encoder.requires_grad_(False)
    names, x, numbers = NameLoss(clip, NAMES), images(4), torch.arange(4)

    def losses(views, chosen=numbers):
        return names.losses(clip, clip.image_embeds(views), chosen)

    torch.manual_seed(0)
    together = moved_against(x, losses, radius=0.5)
    assert (losses(together) > losses(x)).all()
    assert not together.requires_grad and all(parameter.grad is None for parameter in clip.parameters())
    scaled = [1.0, 10.0, 0.1, 1.0]  # a neighbour's loss is another: each goes its own way
    torch.manual_seed(0)
    again = moved_against(x, lambda y: losses(y) * torch.tensor(scaled), radius=0.5)
    torch.testing.assert_close(again, together, rtol=1e-9, atol=1e-12)


def test_no_radius_and_no_gradient_leave_them_alone():
    x = images()
    assert moved_against(x, lambda y: 1 / 0, radius=0) is x
    assert torch.equal(moved_against(x, lambda y: 0 * y.sum((1, 2, 3)), radius=1.0), x)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_the_objective_learns_from_the_images_that_were_moved(chunk_size):
    """Written out: views drawn, moved and embedded chunk by chunk, and the losses of all of them."""
    clip = make_clip().double()
    clip.text_encoder.requires_grad_(False)
    names, x, numbers = NameLoss(clip, NAMES), images(4), torch.arange(4)
    ids = torch.randint(0, 90, (4, 8))

    def objective(radius, views=None):
        torch.manual_seed(0)
        options = {"views": views, "pixel_values": lambda y: 2 * y - 1, "names": names, "adversarial": radius}
        return ContrastiveObjective(clip.eval(), chunk_size=chunk_size, **options)

    seen = []

    def views(part):
        seen.append(part + 0.01 * torch.randn_like(part))
        return seen[-1]

    found = objective(0.5, views)(x, ids, None, numbers, seed=1)
    found.backward()
    gradients = [parameter.grad.clone() for parameter in clip.image_encoder.parameters()]
    assert len(seen) == (2 if chunk_size else 1)  # a chunk that is run again draws no other
    plain = objective(0.0)(torch.cat(seen), ids, None, numbers, seed=1)
    assert found > plain
    clip.zero_grad()
    again = objective(0.5, views)(x, ids, None, numbers, seed=1)
    again.backward()
    assert torch.equal(found, again) and gradients[0].abs().sum() > 0
    for gradient, parameter in zip(gradients, clip.image_encoder.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_a_step_by_the_gradient_is_against_moved_images_alone():
    """The gradient of the objective, beside that of the same loss at the moved images, which are constants to it."""
    clip = make_clip().double().eval()
    clip.text_encoder.requires_grad_(False)
    names, x, numbers, ids = NameLoss(clip, NAMES), images(4), torch.arange(4), torch.randint(0, 90, (4, 8))
    moved = []

    class Recording(ContrastiveObjective):
        def _embed(self, encode, inputs, seed):
            if seed.startswith("image"):
                moved.append(inputs.clone())
            return super()._embed(encode, inputs, seed)

    Recording(clip, names=names, adversarial=0.5)(x, ids, None, numbers, seed=1).backward()
    found = [parameter.grad.clone() for parameter in clip.image_encoder.parameters()]
    clip.zero_grad()
    ContrastiveObjective(clip, names=names)(moved[0], ids, None, numbers, seed=1).backward()
    assert not torch.equal(moved[0], x)
    for gradient, parameter in zip(found, clip.image_encoder.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_what_it_needs_is_said():
    with pytest.raises(ValueError, match="moved against their names, which needs names"):
        ContrastiveObjective(make_clip(), adversarial=0.5)
