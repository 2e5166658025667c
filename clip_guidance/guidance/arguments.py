"""Checks of the arguments of methods, when a method is made rather than in the middle of a run."""

from typing import Any

from clip_guidance.guidance.checks import shown

_LARGEST = 1e9  # of a factor: beyond it float32 overflows in the square of a shift
_MOST = 10_000  # of repetitions, each of which costs a decode and a pass through the reward
_SEEDS = 2**43  # the generator's seed is some million times as much, in 64 bits


def check_number(name: str, value: Any, least: float = -_LARGEST) -> None:
    """Refuse what is not a finite number from ``least`` to 1e9.

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: ``value`` is not finite or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if not least <= value <= _LARGEST:
        raise ValueError(f"{name} must be a finite number from {least:g} to {_LARGEST:g}, got {shown(value)}")


def check_count(name: str, value: Any, least: int = 1, of: str = "") -> None:
    """Refuse what is not a whole number from ``least`` to 10,000.

    Raises:
        ValueError: ``value`` is not a whole number or out of range.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number{of}, at least {least}, got {shown(value)}")
    if value > _MOST:
        raise ValueError(f"{name} must be a whole number{of}, at most {_MOST}, got {shown(value)}")


def check_seed(value: Any) -> None:
    """Refuse what is not a whole number of less than 43 bits.

    Raises:
        ValueError: ``value`` is another.
    """
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= _SEEDS:
        raise ValueError(f"seed must be a whole number of less than 43 bits, got {shown(value)}")
