"""How a pipeline lays out its samples in what it hands to ``scheduler.step``."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clip_guidance.guidance.adapters.adapter import Adapter
from clip_guidance.guidance.adapters.call_stack import PipelineCall


@dataclass(frozen=True)
class BatchLayout:
    """Tell the samples (B, ...) from the tensor that holds them.

    Attributes:
        copies: How often the tensor holds the batch, one copy for each side of classifier-free guidance: 1 or 2.
        frames: Number F of frames of a video whose frames are the rows of the tensor, (B·F, C, h, w); None for others.
    """

    copies: int = 1
    frames: int | None = None

    @classmethod
    def of(cls, sample: Tensor, adapter: Adapter, call: PipelineCall | None) -> "BatchLayout":
        """Find the layout of the ``sample`` that a pipeline hands to its scheduler."""
        frames = call.variables.get("frames") if call is not None and adapter.framewise else None
        return cls(2 if adapter.doubled and _is_doubled(sample) else 1, frames)

    def samples(self, handed: Tensor) -> Tensor:
        """Return the samples, (B, ...) or videos (B, C, F, h, w) as the denoiser reads them."""
        samples = handed[: len(handed) // self.copies]
        return samples if self.frames is None else samples.unflatten(0, (-1, self.frames)).transpose(1, 2)

    def handed(self, samples: Tensor) -> Tensor:
        """Undo :meth:`samples`."""
        flat = samples if self.frames is None else samples.transpose(1, 2).flatten(0, 1)
        return flat.repeat(self.copies, *[1] * (flat.ndim - 1))

    def rows(self, parents: Tensor) -> Tensor:
        """Return the rows of the tensor that hold the samples ``parents``, (B,), of which each takes the place."""
        frames, count = self.frames or 1, len(parents)
        rows = (parents[:, None] * frames + torch.arange(frames)).flatten()
        return torch.cat([rows + copy * count * frames for copy in range(self.copies)])


def model_mean(model_output: Tensor, sample: Tensor, index: int) -> Tensor:
    """Drop the half that predicts a variance (Nichol & Dhariwal 2021), where there is one.

    Raises:
        ValueError: The model output has another shape than the sample.
    """
    shape, channels = model_output.shape, sample.shape[1]
    if shape != sample.shape and shape == (len(sample), 2 * channels, *sample.shape[2:]):
        return model_output[:, :channels]
    if shape != sample.shape:
        raise ValueError(
            f"guidance expected a model output of the sample's shape {tuple(sample.shape)}, or with twice the channels "
            f"where it predicts a variance, got {tuple(shape)} at step {index}"
        )
    return model_output


def _is_doubled(sample: Any) -> bool:
    half = len(sample) // 2
    return len(sample) % 2 == 0 and sample[:half].equal(sample[half:])
