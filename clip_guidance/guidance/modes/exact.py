"""Mode "exact": the reward's gradient at the noisy sample, through the denoiser.

    Δ = (σ²/α) · (∂x̂₀/∂x)ᵀ ∇r(x̂₀)

By Tweedie's formula ∂x̂₀/∂x = (α/σ²)·Cov(x₀|x), so this is mode "x0" with the denoiser's own posterior
covariance in place of the isotropic one. The gradient is that of DPS (Chung et al. 2023, arXiv:2209.14687),
the weight that of classifier guidance (Dhariwal & Nichol 2021, arXiv:2105.05233). It costs one backward
through the denoiser and no second forward: :class:`DenoiserTape` records the forward that the pipeline runs
anyway. At α = 0 the sample holds nothing of x₀, and the mode falls back to "x0".
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clip_guidance.guidance.modes import x0
from clip_guidance.guidance.prediction import Prediction

_NO_SIGNAL = 2**-11  # of α/σ: diffusers writes a terminal signal-to-noise ratio of zero as α/σ = 2⁻¹²
_SAMPLE_KEYWORDS = ("sample", "hidden_states")  # the denoiser's first argument: UNets', transformers'


def shift(
    prediction: Prediction,
    reward_gradient: Callable[[Tensor], Tensor],
    data_variance: float,
    tape: "DenoiserTape",
) -> Tensor:
    """Δ for a scale of 1, of the shape of the sample; ``data_variance`` matters only without a signal."""
    level = prediction.level
    if level.alpha <= _NO_SIGNAL * level.sigma:
        return x0.shift(prediction, reward_gradient, data_variance, tape)
    return level.sigma**2 / level.alpha * tape.vjp(prediction, reward_gradient(prediction.x0))


class DenoiserTape:
    """Records the denoiser's forwards of one step, and whatever the pipeline computes from their outputs.

    A forward-pre-hook makes the denoiser's input a leaf and turns gradients on, also inside a pipeline's
    ``no_grad``; they stay on through classifier-free guidance until :meth:`clear`. Every step starts from a
    fresh leaf, so the sampling as a whole is not differentiable.

    Args:
        scheduler: The scheduler whose ``scale_model_input`` lies between the noisy sample and the denoiser.
    """

    def __init__(self, scheduler: Any) -> None:
        self.inputs: list[Tensor] = []
        self.retain_graph = False
        self._scheduler = scheduler
        self._outer_grad_mode: bool | None = None

    @contextmanager
    def watch(self, denoiser: nn.Module) -> Iterator[None]:
        """Record every forward of ``denoiser`` inside the ``with`` block."""
        entry_grad_mode = torch.is_grad_enabled()
        handle = denoiser.register_forward_pre_hook(self._record, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            if self._outer_grad_mode is not None:
                # A run was cut off between denoiser and step; the pipeline's own no_grad is left already.
                self._outer_grad_mode = entry_grad_mode
            self.clear()

    def _record(self, denoiser: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        keyword = next((name for name in _SAMPLE_KEYWORDS if name in kwargs), None)
        if not args and keyword is None:
            raise ValueError(
                f"mode='exact' looks for the noisy sample in the first argument of {type(denoiser).__name__} "
                f"or in {' or '.join(_SAMPLE_KEYWORDS)}; it was called with {', '.join(kwargs) or 'nothing'}"
            )
        sample = args[0] if args else kwargs[keyword]
        leaf = sample.detach().requires_grad_()
        self.inputs.append(leaf)
        if self._outer_grad_mode is None:
            self._outer_grad_mode = torch.is_grad_enabled()
        torch.set_grad_enabled(True)
        return ((leaf, *args[1:]), kwargs) if args else (args, {**kwargs, keyword: leaf})

    def vjp(self, prediction: Prediction, cotangent: Tensor) -> Tensor:
        """(∂x̂₀/∂x)ᵀ cotangent, where x̂₀ = a·x + b·m and m depends on x through the recorded forwards.

        Args:
            prediction: The step's prediction, its ``model_output`` still on the tape.
            cotangent: Of the shape of the sample, in float32 or better.

        Raises:
            RuntimeError: The model output that reached ``scheduler.step`` does not depend on the recorded
                inputs.
        """
        output, level, kind = prediction.model_output, prediction.level, prediction.kind
        if not self.inputs or not output.requires_grad:
            raise RuntimeError(
                "mode='exact' needs the model output's gradient with respect to the denoiser's input, but"
                f" what reached {type(self._scheduler).__name__}.step carries none: since the last step the "
                f"denoiser was called {len(self.inputs)} times, or it runs without gradients. Use mode='x0'"
            )
        grads = torch.autograd.grad(
            output,
            self.inputs,
            (kind.output_weight(level) * cotangent).to(output.dtype),
            retain_graph=self.retain_graph,
            allow_unused=True,
        )
        total = kind.sample_weight(level) * cotangent
        for grad in grads:
            if grad is not None:
                total = total + self._to_sample(grad, prediction).to(total.dtype)
        return total

    def _to_sample(self, grad: Tensor, prediction: Prediction) -> Tensor:
        """From the denoiser's input to the noisy sample: the transpose of tile, concatenate, scale."""
        sample = prediction.sample
        batch, channels = sample.shape[:2]
        if grad.ndim != sample.ndim or len(grad) % batch or grad.shape[2:] != sample.shape[2:]:
            raise ValueError(
                f"mode='exact' expected the denoiser to read copies of the sample {tuple(sample.shape)} "
                f"along the batch, with or without more channels; it read {tuple(grad.shape)}. Use mode='x0'"
            )
        grad = grad[:, :channels].unflatten(0, (-1, batch)).sum(0)
        if hasattr(self._scheduler, "scale_model_input"):
            # The scaling is linear and elementwise, hence its own transpose.
            grad = self._scheduler.scale_model_input(grad, prediction.timestep)
        return grad

    def clear(self) -> None:
        """Forget the recorded inputs and put the grad mode back to what it was before the first of them."""
        self.inputs.clear()
        if self._outer_grad_mode is not None:
            torch.set_grad_enabled(self._outer_grad_mode)
            self._outer_grad_mode = None
