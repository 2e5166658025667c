"""The loss scale of training in float16.

float16 has no values between 0 and 6e-8. So the loss is multiplied by a scale before the backward pass, and its
gradients are divided by the scale before they are clipped, measured or used (Micikevicius et al. 2018,
arXiv:1710.03740, section 3.2). A gradient that overflows says that the scale is too high: the step is skipped and the
scale is halved. After ``growth_interval`` steps without an overflow the scale is doubled (``torch.amp.GradScaler``).
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

MIN_SCALE = 1e-4  # fairseq's min_loss_scale: an overflow at a lower scale has another cause


class LossScale:
    """The loss scale of a launch in float16; in any other precision nothing is scaled.

    accelerate makes a scaler for GPUs only, and silently computes in float32 on the CPU: there this class makes a
    scaler, and has accelerate compute in float16. Elsewhere the scaler is accelerate's own, with its state reset, since
    it may have trained something else before.

    Args:
        accelerator: Before its ``prepare``, which hands the scaler to the optimizer.

    Attributes:
        skipped_steps: Number of steps skipped so far because a gradient overflowed.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.scaler, self.skipped_steps = accelerator, None, 0
        if accelerator.mixed_precision != "fp16":
            return
        options = accelerator.scaler_handler.to_kwargs() if accelerator.scaler_handler is not None else {}
        new = torch.amp.GradScaler("cpu", **options)
        if accelerator.scaler is None:
            accelerator.scaler, accelerator.native_amp = new, True
        self.scaler = accelerator.scaler
        self.scaler.load_state_dict(new.state_dict())

    def may_overflow(self, loss: Tensor) -> bool:
        """Tell whether the scale explains gradients that are not finite; every process must ask."""
        if self.scaler is None or self.scaler.get_scale() <= MIN_SCALE:
            return False
        return bool(self.accelerator.gather(loss.detach()).isfinite().all())

    def metrics(self) -> dict[str, Tensor]:
        """Return what the log gets: the present scale and the number of skipped steps."""
        if self.scaler is None:
            return {}
        return {
            "loss_scale": torch.tensor(self.scaler.get_scale()),
            "skipped_steps": torch.tensor(self.skipped_steps),
        }

    def state_dict(self) -> dict[str, Any] | None:
        """Return the present state, ready for JSON; None where nothing is scaled."""
        if self.scaler is None:
            return None
        return {"scaler": self.scaler.state_dict(), "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Continue from a state; None, that of a run in another precision, leaves the initial scale."""
        if self.scaler is not None and state is not None:
            self.scaler.load_state_dict(state["scaler"])
            self.skipped_steps = state["skipped_steps"]
