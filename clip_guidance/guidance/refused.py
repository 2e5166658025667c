"""The schedulers of diffusers that cannot be guided, and why.

A shift of the predicted clean sample needs a step from (model_output, timestep, sample), a continuous sample
x = α·x₀ + σ·ε, and a model output that x̂₀ depends on linearly. Each of these schedulers lacks one of them.
"""

_TOKENS = "its samples are discrete tokens, which cannot be shifted"
_INVERSE = "it walks from the picture to the noise"
_NO_STEP = "it has no step(model_output, timestep, sample)"
_STAGES = "it changes resolution from stage to stage, with noise levels of its own in each"

#: Class name -> reason, as the end of a sentence about the scheduler.
REFUSED = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "DDIMInverseScheduler": _INVERSE,
    "DPMSolverMultistepInverseScheduler": _INVERSE,
    "KarrasVeScheduler": _NO_STEP,
    "ScoreSdeVeScheduler": _NO_STEP,
    "ScoreSdeVpScheduler": _NO_STEP,
    "HeliosScheduler": _STAGES,
    "HeliosDMDScheduler": _STAGES,
    "ConsistencyDecoderScheduler": "it decodes latents; the picture is settled before it runs",
    "FlowMapEulerDiscreteScheduler": "its model predicts the mean velocity over a step, which implies no x₀",
    "PiflowScheduler": "its model predicts a grid of clean samples for each step, not one",
    "RePaintScheduler": "it walks back and forth in time; inpaint with another scheduler",
    "RFD4ProteinaScheduler": "its samples are protein structures",
}
