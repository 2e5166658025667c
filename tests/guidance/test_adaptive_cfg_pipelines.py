"""Adaptive classifier-free guidance in every pipeline, and as the guider of modular ones."""

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from helpers import pipeline_zoo
from helpers.modular_runs import QWEN, SD3, SDXL, built, redness, run, untouched

from clip_guidance.guidance import AdaptiveCFG, Guidance


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", pipeline_zoo.PIPELINES)
def test_the_scale_of_any_pipeline_is_found_or_it_is_refused(key):
    """With the pipeline's own scale alone nothing changes, to the bit; that scale is a round number."""
    plain, adaptive = pipeline_zoo.run(key), AdaptiveCFG(pipeline_zoo.redness, (1.0, 9.0))
    try:
        with adaptive.attach(pipeline_zoo.built(key)[0]):
            pipeline_zoo.run(key)
    except ValueError as error:
        assert "AdaptiveCFG" in str(error) and len(str(error)) <= 300
        return
    own = torch.cat(adaptive.report.own)
    scales = [round(each, 2) for each in own.tolist()]
    assert own.tolist() == pytest.approx(scales, rel=1e-4)
    with AdaptiveCFG(pipeline_zoo.redness, sorted(set(scales))[:1]).attach(pipeline_zoo.built(key)[0]):
        found = pipeline_zoo.run(key)
    assert len(set(scales)) > 1 or found.equal(plain)


@pytest.mark.slow
@pytest.mark.parametrize("key", [SD3, SDXL, QWEN])
def test_as_a_guider_it_makes_what_it_makes_attached(key):
    pipe, inputs = built(key)
    with AdaptiveCFG(redness, (1.5, 8.0)).attach(pipe) as attached:
        expected = run(pipe, inputs, guider=ClassifierFreeGuidance(3.0))
    adaptive = AdaptiveCFG(redness, (1.5, 8.0), guider=ClassifierFreeGuidance(3.0))
    found = run(pipe, inputs, guider=adaptive)
    torch.testing.assert_close(found, expected)
    assert [each.tolist() for each in adaptive.chosen] == [each.tolist() for each in attached.chosen] != []
    assert not found.equal(run(pipe, inputs, guider=ClassifierFreeGuidance(3.0)))
    untouched(pipe)
    own = run(pipe, inputs, guider=ClassifierFreeGuidance(7.5))
    assert run(pipe, inputs, guider=AdaptiveCFG(redness, (7.5,))).equal(own)
    with Guidance(redness, 20.0).attach(pipe):
        expected = run(pipe, inputs, guider=ClassifierFreeGuidance(8.0))
    inside = AdaptiveCFG(redness, (8.0,), guider=ClassifierFreeGuidance(3.0))
    found = run(pipe, inputs, guider=Guidance(redness, 20.0, guider=inside))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="attach.. steers what the pipeline predicts by itself"):
        adaptive.attach(pipe)
