"""Step lengths relative to what the sampler does by itself: of what they are a share, and when there is nothing."""

from dataclasses import replace

import pytest
import torch
from helpers.reference_samplers import guided, make_pipe, reward_gradient, scheduler_of, state_at

from clip_guidance.guidance.methods import MPGD, FreeDoM
from clip_guidance.guidance.methods.ddim import step_of
from clip_guidance.guidance.modes import RewardGradient

#: With the strengths of a run without classifier-free guidance, which they would warn of if they were left out.
FREEDOM, MPGD_RELATIVE = FreeDoM(rho_without=0.02), MPGD(rho_without=1.0)


def scaled_gradient(size):
    def found(x):
        at = reward_gradient(x)
        return RewardGradient(size * at.gradient, size * at.rewards)

    return found


def in_float32(prediction):
    return replace(prediction, model_output=prediction.model_output.float(), sample=prediction.sample.float())


@pytest.mark.parametrize("size", [100, 1e-30, 1e30])
@pytest.mark.parametrize("method", [FREEDOM, MPGD_RELATIVE])
def test_relative_steps_do_not_see_the_size_of_the_reward(method, size):
    """Nor does float32, in which the squares of such gradients are 0 or infinite."""
    states = [state_at(scheduler_of(), 3, reward_gradient=scaled_gradient(each)) for each in (1, size)]
    states = [replace(state, prediction=in_float32(state.prediction)) for state in states]
    plain, sized = (method.shift(state) for state in states)
    assert plain.dtype == torch.float32 and plain.abs().max() > 1e-3
    torch.testing.assert_close(sized, plain)


@pytest.mark.parametrize("method", [FreeDoM(rho=0.2), MPGD(rho=0.2)])
def test_step_is_a_share_of_the_classifier_free_correction(method):
    """ρ·rms(ε̂_cfg − ε̂_uncond), of each sample on its own: of x_{t−1} for FreeDoM, of α'x̂₀ for MPGD."""
    scheduler, correction = scheduler_of(), torch.tensor([0.5, 2.0], dtype=torch.float64)
    level = state_at(scheduler, 3).level
    state = state_at(scheduler, 3, correction=level.sigma / level.alpha * correction)  # of x̂₀
    moved = (step_of(state).response if isinstance(method, FreeDoM) else state.next_level.alpha) * method.shift(state)
    torch.testing.assert_close(moved.flatten(1).square().mean(1).sqrt(), 0.2 * correction)


@pytest.mark.parametrize("method", [FREEDOM, MPGD_RELATIVE])
def test_no_gradient_is_no_shift(method):
    none = lambda x: RewardGradient(torch.zeros_like(x), x.new_zeros(len(x)))  # noqa: E731
    assert not method.shift(state_at(scheduler_of(), 3, reward_gradient=none)).any()


@pytest.mark.parametrize("method", [FreeDoM(0.3), MPGD(rho=0.3)])
def test_without_classifier_free_guidance_rho_does_not_act_and_says_so_once(method):
    """The step is then the papers' share of the noise, whatever rho is; with rho_without given nothing is amiss."""
    pipe, default = make_pipe(), 0.02 if isinstance(method, FreeDoM) else 1.0
    with pytest.warns(UserWarning) as caught:
        found = guided(pipe, method)
    (message,) = {str(warning.message) for warning in caught if "rho" in str(warning.message)}
    assert len(caught) == 1 and len(message) <= 300
    assert "no classifier-free guidance, or it corrects nothing, so rho=0.3 does not act: the step is" in message
    assert f"rho_without={default:g}. Set rho_without" in message
    chosen = replace(method, rho_without=default)
    assert guided(pipe, chosen).equal(found)
    assert not torch.allclose(guided(pipe, replace(chosen, rho_without=2 * default)), found)


@pytest.mark.parametrize("method", [FreeDoM(0.3), MPGD(rho=0.3)])
def test_a_correction_of_nothing_is_none(method):
    """Where both texts are the same, ρ times their difference is 0: such a sample alone takes the other."""
    told = []
    neither = state_at(scheduler_of(), 3, correction=None, tell=told.append)
    both = replace(neither, correction=torch.tensor([0.5, 0.5], dtype=torch.float64))
    mixed = replace(neither, correction=torch.tensor([0.5, 1e-8], dtype=torch.float64))
    assert method.shift(both).all() and not told
    expected = torch.stack([method.shift(both)[0], method.shift(neither)[1]])
    assert method.shift(mixed).equal(expected) and len(set(told)) == 1
