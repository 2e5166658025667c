"""What a pipeline made of its two predictions is found again, whatever its rule."""

import pytest
import torch

from clip_guidance.guidance.engine.combination import find_combination


@pytest.mark.parametrize("rule", ["plain", "negated", "rescaled", "norm"])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_two_predictions_and_the_scale_are_found(rule, order, dtype):
    generator = torch.Generator().manual_seed(0)
    uncond = torch.randn(2, 4, 16, 16, generator=generator).to(dtype)
    cond = uncond + 0.3 * torch.randn(2, 4, 16, 16, generator=generator).to(dtype)

    def combined(scale):
        made = uncond + scale * (cond - uncond)
        if rule == "rescaled":
            deviations = [x.std(dim=(1, 2, 3), keepdim=True) for x in (cond, made)]
            made = 0.7 * made * (deviations[0] / deviations[1]) + 0.3 * made
        if rule == "norm":
            made = made * (cond.norm(dim=-1, keepdim=True) / made.norm(dim=-1, keepdim=True))
        return -made if rule == "negated" else made

    found = find_combination(combined(5.0), (uncond, cond)[::order])
    assert found.cond.equal(cond) and found.uncond.equal(uncond)
    rough = dtype == torch.bfloat16
    assert found.scale.tolist() == pytest.approx([5.0] * 2, rel=3e-2 if rough else 1e-4)
    assert found.at(float(found.scale[0]))[0].equal(combined(5.0)[0])
    torch.testing.assert_close(found.at(9.0), combined(9.0), rtol=2e-2 if rough else 1e-4, atol=5e-2 if rough else 1e-5)
