"""The calibrated strength: no step of CLIP guidance is longer than the step that classifier-free guidance makes.

For a pipeline and a CLIP that nobody has measured, no number is right: the gradient of a CLIP's logit depends on its
temperature, its towers, the decoder and the size of the image. What a pipeline can bear is known, though. Its own
correction by classifier-free guidance is as long as a step in the direction of a text may be. So the strength of each
image is, at each guided step k of a run,

    s_k = min over the steps j up to k of  rms(x̂₀_cfg − x̂₀_uncond) / rms(Δ_j),

with the shift Δ of a scale of 1. The first step is as long as the correction, and so is each that sets a new minimum;
none is longer. Between them the strength is constant, so that the shift fades where the reward is satisfied. Without
classifier-free guidance the posterior's standard deviation √w takes the place of the correction, as for
:mod:`a cap <clip_guidance.guidance.engine.cap>`.

The ratio 1 is what was found on the packaged pair: at the strength 10, which was tuned by a judge, the longest step of
a run is 0.7 to 2.1 corrections long, and the calibrated strength of the same runs ends between 5 and 14.
"""

import math

import torch
from torch import Tensor

from clip_guidance.guidance.per_sample import rms


class Calibration:
    """Find the strength of each image of one run.

    Attributes:
        scale: The strengths, (B,), so far; None before the first step. 0 for an image that no step told anything of.
    """

    def __init__(self) -> None:
        self.scale: Tensor | None = None
        self._least: Tensor | None = None

    def update(self, shift: Tensor, correction: Tensor | None, variance: float) -> Tensor:
        """Take a step into account; return the strengths (B,).

        Args:
            shift: The shift of a scale of 1, (B, ...).
            correction: Root mean square (B,) of classifier-free guidance's correction; None where there is none.
            variance: The posterior variance w.
        """
        length = rms(shift)
        longest = torch.full_like(length, math.sqrt(variance))
        if correction is not None:
            correction = correction.to(length)
            longest = torch.where(correction.isfinite() & (correction > 0), correction, longest)
        found = torch.where(length > 0, longest / length, math.inf)
        self._least = found if self._least is None else torch.minimum(self._least, found)
        self.scale = torch.where(self._least.isfinite(), self._least, 0.0)
        return self.scale

    def take_rows(self, parents: Tensor) -> None:
        """Follow the samples, (B,), that have taken the place of others."""
        if self._least is not None and self.scale is not None:
            parents = parents.to(self.scale.device)
            self._least, self.scale = self._least[parents], self.scale[parents]
