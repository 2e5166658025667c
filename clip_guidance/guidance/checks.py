"""Checks of what a user gives: types before values, errors of one line that name the argument."""

import functools
import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import fields, is_dataclass
from numbers import Real
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def shown(value: Any) -> str:
    """Return a short ``repr`` for an error message; of what has none, the type's name."""
    try:
        return reprlib.repr(value)
    except Exception:  # of any object that a user may give
        return type(value).__name__


def is_number(value: Any) -> bool:
    """Return whether a value is one real number, also of numpy or torch; a bool is none."""
    if isinstance(value, Real):
        return not isinstance(value, bool)
    return getattr(value, "ndim", None) == 0 and isinstance(number := value.item(), Real) and is_number(number)


def as_number(name: str, value: Any) -> float:
    """Return a number as Python's int or float.

    Raises:
        TypeError: ``value`` is no number.
        ValueError: ``value`` is too large for a float.
    """
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {shown(value)}")
    value = value.item() if hasattr(value, "item") else value
    try:
        return value if isinstance(value, int) and math.isfinite(value) else float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got {shown(value)}") from None


def as_numbers(name: str, value: Any) -> list[float]:
    """Return one number, or several, as a list.

    Raises:
        TypeError: ``value`` is neither a number nor a collection of numbers with an order.
        ValueError: There is no number, or one that is not finite.
    """
    if is_number(value):
        found = [as_number(name, value)]
    elif isinstance(value, str | bytes | Mapping | Set) or not (isinstance(value, Collection) or _is_array(value)):
        raise TypeError(f"{name} must be a number or several, got {type(value).__name__} {shown(value)}")
    else:
        found = [as_number(f"{name} {index}", each) for index, each in enumerate(value)]
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(f"{name} must be finite, got {shown(value)}")
    return found


def as_whole(name: str, value: Any, what: str, least: int) -> int:
    """Return a whole number of at least ``least``.

    Args:
        name: Name of the argument.
        value: What was given.
        what: What is expected, for the message: "at least 1 view".
        least: The least number.

    Raises:
        TypeError: ``value`` is no number.
        ValueError: ``value`` is not whole, or too small.
    """
    number = as_number(name, value)
    if not math.isfinite(number) or number != int(number) or number < least:
        raise ValueError(f"{name} must be {what}, got {shown(value)}")
    return int(number)


def as_weight(value: Any, owner: str) -> float:
    """Return a finite weight, which may be negative, as Python's float.

    Args:
        value: What was given.
        owner: What the weight belongs to, for the message.

    Raises:
        TypeError: ``value`` is no number.
        ValueError: ``value`` is not finite.
    """
    if not is_number(value):
        raise TypeError(f"the weight of {owner} is a {type(value).__name__}; expected a number")
    number = as_number(f"the weight of {owner}", value)
    if not math.isfinite(number):
        raise ValueError(f"the weight of {owner} must be finite, got {shown(number)}")
    return float(number)


def formerly(old: str, new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a decorator that takes the argument ``new`` under its former name ``old``, too."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def renamed(*args: P.args, **kwargs: P.kwargs) -> R:
            if old in kwargs and new not in kwargs:
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return renamed

    return decorate


class Checked(ABC):
    """Check the options of a dataclass again whenever one of them is set, so that each acts or is refused.

    A subclass says in ``_check`` what is wrong, and calls it in ``__post_init__`` before it sets ``_is_checked``.
    """

    _is_checked = False

    @abstractmethod
    def _check(self) -> None:
        """Raise ``TypeError`` or ``ValueError`` where an option is wrong."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; one of the options is checked with the others, and stays as it was if it is refused."""
        before = vars(self).get(name)
        super().__setattr__(name, value)
        if self._is_checked and is_dataclass(self) and name in {each.name for each in fields(self)}:
            try:
                self._check()
            except Exception:
                super().__setattr__(name, before)
                raise


def _is_array(value: Any) -> bool:
    return hasattr(value, "ndim") and hasattr(value, "__len__")
