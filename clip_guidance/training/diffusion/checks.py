"""What the settings of every program of this room must be, whatever else they say."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

COUNTS = {
    *("size", "latent_channels", "depth", "patch_size", "teacher_steps", "segments", "validation_count"),
    *("steps", "batch_size", "vae_steps", "vae_batch_size", "unet_steps"),
    *("log_every", "save_every", "evaluate_every", "sample_every"),
}


def check_settings(settings: Any) -> None:
    """End a program where a number of its settings has no meaning.

    Args:
        settings: Dataclass of the run; of the names that are known here it may have any.

    Raises:
        SystemExit: A count is below 1, or ``ema_decay`` is no share; names the option.
    """
    for name in (field.name for field in fields(settings) if field.name in COUNTS):
        if (value := getattr(settings, name)) < 1:
            raise SystemExit(f"--{name}: expected at least 1, got {value}")
    if not 0 < settings.ema_decay < 1:
        raise SystemExit(f"--ema_decay: expected a share in (0, 1), got {settings.ema_decay:g}")
