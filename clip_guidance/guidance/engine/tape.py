"""Record the denoiser's forwards of a step, for the vector-Jacobian product of mode "exact"."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from clip_guidance._tensors import at_least_float32, power_of_two
from clip_guidance.guidance.adapters.by_class import by_class
from clip_guidance.guidance.adapters.noise_level import UnsupportedSchedulerError
from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.per_sample import are_finite
from clip_guidance.guidance.weights.hold import held, lacks
from clip_guidance.guidance.weights.offload import keep_onloaded

_SAMPLE_KEYWORDS = ("sample", "hidden_states", "x", "latents")  # of UNets, transformers, Z-Image's, Cosmos's control
_SAME = 0.02  # relative error up to which an input counts as a multiple of the sample; bfloat16 rounds by 0.004
_GRADS_IN_TRAINING = ("MOEFeedForwardSwiGLU",)  # HiDream's: its experts run under no_grad, except in training


def check_recordable(scheduler: Any) -> None:
    """Refuse a scheduler whose pipeline computes with the sample where the tape does not see it.

    Raises:
        UnsupportedSchedulerError: The scheduler is an ``SCMScheduler``.
    """
    if by_class({"SCMScheduler"}, scheduler) is not None:
        raise UnsupportedSchedulerError(
            f"the pipeline of {type(scheduler).__name__} computes the model output from its own copy of the noisy "
            "sample beside the denoiser's, where no gradient is recorded. Use mode='x0'"
        )


@dataclass(frozen=True)
class Input:
    """Hold one tensor that the denoiser read.

    Attributes:
        leaf: The leaf that the denoiser read in place of the tensor, (kB, ...), or (...) of one sample.
        sample: Index of that one sample, where the denoiser takes a list of samples; None otherwise.
    """

    leaf: Tensor
    sample: int | None = None


class DenoiserTape:
    """Record the denoiser's forwards of one step, and what is computed from their outputs.

    A forward-pre-hook makes the denoiser's input a leaf and turns gradients on, also inside a pipeline's
    ``no_grad``; they stay on through classifier-free guidance until :meth:`clear`. Every step starts from a
    fresh leaf, so the sampling as a whole is not differentiable. An input that was computed from an earlier output
    of the same step, as in self-attention guidance, is on the tape already and stays as it is.

    Args:
        wanted: Returns whether the forward that happens right now belongs to the guided pipeline.
    """

    def __init__(self, wanted: Callable[[], bool]) -> None:
        self.inputs: list[Input] = []
        self.retain_graph = False
        self.made_anew: Tensor | None = None  # share of the sample that the denoiser may read alone
        self._wanted = wanted
        self._outer_grad_mode: bool | None = None
        self._outer_graph = False  # whether somebody differentiates through the pipeline itself
        self._thread = 0
        self._during_step = ExitStack()

    @contextmanager
    def watch(self, networks: list[nn.Module]) -> Iterator[None]:
        """Record every forward of ``networks`` inside the ``with`` block."""
        entry_grad_mode = torch.is_grad_enabled()
        handles = [network.register_forward_pre_hook(self._record, with_kwargs=True) for network in networks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            if self._outer_grad_mode is not None:
                # A run was cut off between denoiser and step; the pipeline's own no_grad is left already.
                self._outer_grad_mode = entry_grad_mode
            self.clear()

    def _record(self, network: nn.Module, args: tuple, kwargs: dict | None = None) -> tuple[tuple, dict] | None:
        # torch passes no keywords to a hook that another thread takes off while this forward looks at it.
        if kwargs is None or not self._wanted():
            return None
        keyword = next((name for name in _SAMPLE_KEYWORDS if name in kwargs), None)
        if not args and keyword is None:
            raise ValueError(
                f"mode='exact' looks for the noisy sample in the first argument of {type(network).__name__} "
                f"or in {' or '.join(_SAMPLE_KEYWORDS)}; it was called with {', '.join(kwargs) or 'nothing'}"
            )
        given = args[0] if args else kwargs[keyword]
        if not self.inputs:
            self._outer_graph = any(tensor.requires_grad for tensor in _tensors(given))
        if self._outer_grad_mode is not None and self._thread != threading.get_ident():
            self.clear()  # another thread's run was cut off in the middle of a step
        if self._outer_grad_mode is None:
            self._outer_grad_mode, self._thread = torch.is_grad_enabled(), threading.get_ident()
        torch.set_grad_enabled(True)
        self._during_step.enter_context(keep_onloaded(network))
        self._during_step.enter_context(_differentiable(network))
        leaves = self._leaves(given)
        return ((leaves, *args[1:]), kwargs) if args else (args, {**kwargs, keyword: leaves})

    def _leaves(self, given: Any, sample: int | None = None) -> Any:
        """Put leaves in place of the tensors of ``given``, a tensor or lists of tensors."""
        if isinstance(given, (list, tuple)):
            indices = range(len(given)) if sample is None else [sample] * len(given)
            return type(given)(self._leaves(each, i) for each, i in zip(given, indices, strict=True))
        if not isinstance(given, Tensor) or not given.is_floating_point():
            return given
        if given.requires_grad and not self._outer_graph:
            return given
        # The graph of a pipeline that differentiates by itself (attend and excite) must not be cut.
        leaf = given.view_as(given) if given.requires_grad else given.detach().requires_grad_()
        self.inputs.append(Input(leaf, sample))
        return leaf

    def vjp(self, prediction: Prediction, cotangent: Tensor) -> Tensor:
        """Compute (∂x̂₀/∂x)ᵀ cotangent through the recorded forwards.

        x̂₀ is a·x + b·m, where the model output m depends on x.

        Args:
            prediction: The step's prediction, its ``model_output`` still on the tape.
            cotangent: The vector, of the shape of the sample, in float32 or better.

        Raises:
            RuntimeError: The model output that reached ``scheduler.step`` does not depend on the recorded
                inputs.
            ValueError: An input that the output depends on holds no copy of the sample.
        """
        output, level, kind = prediction.model_output, prediction.level, prediction.kind
        if not self.inputs or not output.requires_grad:
            raise RuntimeError(
                "mode='exact' needs the model output's gradient with respect to the denoiser's input, but"
                f" what reached scheduler.step carries none: since the last step the "
                f"denoiser was called {len(self.inputs)} times, or it runs without gradients. Use mode='x0'"
            )
        # The gradients that pass through a network of half precision must have a size that it can hold.
        factor = power_of_two(cotangent)
        grads = torch.autograd.grad(
            output,
            [given.leaf for given in self.inputs],
            (kind.output_weight(level) * cotangent * factor).to(output.dtype),
            retain_graph=self.retain_graph,
            allow_unused=True,
        )
        total = torch.zeros_like(cotangent)
        found = 0
        for given, grad in zip(self.inputs, grads, strict=True):
            if grad is not None:
                found += _add_in_sample(total, given, grad, prediction.sample.detach(), self.made_anew)
        if not found:
            shapes = ", ".join(str(tuple(given.leaf.shape)) for given in self.inputs)
            raise ValueError(
                f"mode='exact' expected the denoiser to read copies of the sample {tuple(prediction.sample.shape)} "
                f"along the batch, with or without more channels or tokens; it read {shapes}. Use mode='x0'"
            )
        return kind.sample_weight(level) * cotangent + total / factor

    def clear(self) -> None:
        """Forget the recorded inputs and put the grad mode back to what it was before them."""
        self.inputs.clear()
        self.made_anew = None
        self._during_step.close()
        if self._outer_grad_mode is not None:
            if threading.get_ident() == self._thread:  # the grad mode is the thread's own
                torch.set_grad_enabled(self._outer_grad_mode)
            self._outer_grad_mode = None


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, (list, tuple)):
        for each in given:
            yield from _tensors(each)


def _add_in_sample(total: Tensor, given: Input, grad: Tensor, sample: Tensor, made_anew: Tensor | None) -> bool:
    """Add a gradient at the denoiser's input to the one at the sample.

    This is the transpose of tile, concatenate and scale. Where the sample stands in the input, and by how much it was
    scaled, is read off their values. Returns False if the sample does not stand there, neither as a whole nor where it
    is made anew, with an image that is given in place of the rest.
    """
    leaf, rows = given.leaf.detach(), slice(None)
    if given.sample is not None:
        row = given.sample % len(sample)
        leaf, grad, rows = leaf[None], grad[None], slice(row, row + 1)
    target = sample[rows]
    if len(leaf) % len(target):
        return False
    shares = [torch.ones_like(target[:1])] if made_anew is None else [torch.ones_like(target[:1]), made_anew]
    for share in shares:
        for part in _parts(leaf.shape, target.shape):
            copies = part(leaf).reshape(-1, *target.shape)
            scale = _multiple(copies * share, target * share)
            if scale is not None:
                total[rows] += scale * share * part(grad).reshape(copies.shape).to(total.dtype).sum(0)
                return True
    return False


def _parts(shape: torch.Size, target: torch.Size) -> Iterator[Callable[[Tensor], Tensor]]:
    """Iterate over cuts of a sample's size: the whole input, or a range of channels, frames or tokens."""
    if shape[1:].numel() == target[1:].numel():
        yield lambda x: x
        return
    if len(shape) == 3 and len(target) == 5:  # a video's tokens
        area = target[3] * target[4]
        if shape[1] % area == 0 and shape[2] == target[1]:
            frames = shape[1] // area
            for part in _parts(torch.Size([shape[0], shape[2], frames, *target[3:]]), target):
                yield partial(_untokenised, shape=(frames, *target[3:]), part=part)
        return
    if len(shape) > len(target):  # a frame axis of one
        for axis in (i for i in range(1, len(shape)) if shape[i] == 1):
            for part in _parts(torch.Size([*shape[:axis], *shape[axis + 1 :]]), target):
                yield partial(_squeezed, axis=axis, part=part)
        return
    differing = [i for i in range(1, len(shape)) if shape[i] != target[i]] if len(shape) == len(target) else []
    if any(shape[i] < target[i] for i in differing):
        return
    for starts in product(*(_ends_first(shape[i] - target[i]) for i in differing)) if differing else ():
        yield partial(_narrowed, ranges=[(i, start, target[i]) for i, start in zip(differing, starts, strict=True)])


def _ends_first(room: int) -> list[int]:
    return sorted(range(room + 1), key=lambda start: (start not in (0, room), start))


def _untokenised(x: Tensor, shape: tuple[int, ...], part: Callable[[Tensor], Tensor]) -> Tensor:
    return part(x.transpose(1, 2).unflatten(2, shape))


def _squeezed(x: Tensor, axis: int, part: Callable[[Tensor], Tensor]) -> Tensor:
    return part(x.squeeze(axis))


def _narrowed(x: Tensor, ranges: list[tuple[int, int, int]]) -> Tensor:
    for axis, start, count in ranges:
        x = x.narrow(axis, start, count)
    return x


def _multiple(copies: Tensor, sample: Tensor) -> float | None:
    """Return c if the copies (k, *sample.shape) are c·sample, else None; samples that are not finite say nothing."""
    finite = are_finite(sample)
    copies, sample = at_least_float32(copies[:, finite]), at_least_float32(sample[finite])
    norm = sample.square().sum()
    if norm == 0:
        return 1.0 if not copies.any() else None
    scale = (copies * sample).mean(0).sum() / norm
    return float(scale) if (copies - scale * sample).norm() <= _SAME * copies.norm() and scale > 0 else None


@contextmanager
def _differentiable(network: nn.Module) -> Iterator[None]:
    """Let gradients through layers that stop them outside of training, inside the block."""
    with ExitStack() as stack:
        for layer in network.modules():
            if type(layer).__name__ in _GRADS_IN_TRAINING:
                stack.enter_context(held(layer, "training", True))  # not its children's
        if lacks(network, "gradient_checkpointing"):  # ZImageControlNetModel reads it
            stack.enter_context(held(network, "gradient_checkpointing", False))
        yield
