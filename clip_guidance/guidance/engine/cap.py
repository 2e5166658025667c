"""A cap on the shift, relative to the correction that classifier-free guidance makes.

FreeDoM (Yu et al. 2023, arXiv:2303.09833, section 4.4) makes the guidance step as long as a share of the
classifier-free correction ε̂_cfg − ε̂_uncond; here that length is the bound, for each sample on its own:

    rms(Δ) ≤ cap · rms(x̂₀_cfg − x̂₀_uncond).

The correction is not visible in ``scheduler.step``, which sees the sum; it is read off the denoiser's outputs. A
pipeline without it (distilled, or guidance_scale 1) is measured by the posterior's standard deviation √w instead,
which is the size that a classifier-free correction has in order of magnitude.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clip_guidance._tensors import at_least_float32
from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.per_sample import are_finite, rms


class Corrections:
    """Find the correction of classifier-free guidance in the denoiser's outputs of a step.

    Args:
        wanted: Returns whether the forward that happens right now belongs to the guided pipeline.
    """

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self.outputs: list[Tensor] = []
        self._wanted = wanted

    @contextmanager
    def watch(self, denoisers: list[nn.Module]) -> Iterator[None]:
        """Keep every output of ``denoisers`` inside the ``with`` block until :meth:`clear`."""
        handles = [denoiser.register_forward_hook(self._keep) for denoiser in denoisers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.clear()

    def _keep(self, denoiser: nn.Module, args: tuple, output: Any) -> None:
        if self._wanted():
            output = getattr(output, "sample", output)
            output = output[0] if isinstance(output, tuple) else output
            output = torch.stack(list(output)) if isinstance(output, list) else output
            self.outputs.append(output)

    def clear(self) -> None:
        """Forget the outputs."""
        self.outputs.clear()

    def predictions(self, like: Tensor) -> list[Tensor]:
        """Bring the outputs to the shape of ``like``: split along the batch, without variances; none if that fails."""
        found = []
        for output in self.outputs:
            if output.ndim == like.ndim and output.shape[1] > like.shape[1]:
                output = output[:, : like.shape[1]]  # channels: a variance; tokens: a reference image's
            if output.shape[1:].numel() != like.shape[1:].numel() or len(output) % len(like):
                return []
            found += [part.reshape(like.shape) for part in output.split(len(like))]
        return found

    def rms(self, prediction: Prediction) -> Tensor | None:
        """Return the root mean square of x̂₀_cfg − x̂₀_uncond, (B,); None without such guidance.

        With cfg = u + s(c − u), the farthest of the denoiser's predictions from cfg is u, for s > 1/2, in whatever
        order they come. Some pipelines negate the prediction before the step; cfg lies on the line through the
        denoiser's predictions with one sign only.
        """
        output = at_least_float32(prediction.model_output.detach())
        found = [at_least_float32(each.detach()) for each in self.predictions(output)]
        if len(found) < 2:
            return None
        sign = min((1, -1), key=lambda sign: float(_off_the_line(sign * output, found)))
        correction = torch.stack([rms(sign * output - each) for each in found]).amax(0)
        return abs(prediction.kind.output_weight(prediction.level)) * correction


def _off_the_line(output: Tensor, predictions: list[Tensor]) -> Tensor:
    """Sum the squared distances of ``output`` from the line through each sample's predictions."""
    finite = are_finite(torch.stack([output, *predictions], 1))
    first, *others = (each[finite].flatten(1) for each in predictions)
    ways, target = torch.stack([each - first for each in others], -1), (output[finite].flatten(1) - first)[..., None]
    gram = ways.mT @ ways + torch.finfo(ways.dtype).tiny * torch.eye(len(others)).to(ways)
    return (target - ways @ (torch.linalg.pinv(gram) @ (ways.mT @ target))).square().sum()
