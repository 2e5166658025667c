"""The loss scale of training in float16 (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).

float16 holds nothing below 6e-8. So the loss is multiplied by a scale before the backward pass, and its gradients are
divided by it before they are clipped, measured or used. A gradient that overflows says that the scale is too high: the
step is skipped and the scale is halved; after ``growth_interval`` steps without one it is doubled
(``torch.amp.GradScaler``).
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

MIN_SCALE = 1e-4  # fairseq's min_loss_scale: what overflows even so is not the scale's fault


class LossScale:
    """The loss scale of a launch in float16; of any other launch there is none, and this does nothing.

    accelerate makes a scaler for accelerators alone and computes in float32 on the CPU without a word: there this makes
    one, and has it compute in float16. Elsewhere the scaler is accelerate's own, as new: it may have trained something
    else before.

    Args:
        accelerator: before its ``prepare``, which tells the optimizer of the scaler.

    Attributes:
        skipped_steps: how many steps were skipped so far because a gradient overflowed.
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
        """Whether the scale is to blame where gradients are not finite. All processes must ask, and find the same."""
        if self.scaler is None or self.scaler.get_scale() <= MIN_SCALE:
            return False
        return bool(self.accelerator.gather(loss.detach()).isfinite().all())

    def figures(self) -> dict[str, Tensor]:
        """For the log: the present scale and the number of skipped steps."""
        if self.scaler is None:
            return {}
        return {
            "loss_scale": torch.tensor(self.scaler.get_scale()),
            "skipped_steps": torch.tensor(self.skipped_steps),
        }

    def state_dict(self) -> dict[str, Any] | None:
        """Its present state, ready for JSON."""
        if self.scaler is None:
            return None
        return {"scaler": self.scaler.state_dict(), "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Goes on from a state; from none, that of a run in another precision, with a scale as new."""
        if self.scaler is not None and state is not None:
            self.scaler.load_state_dict(state["scaler"])
            self.skipped_steps = state["skipped_steps"]
