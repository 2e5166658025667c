"""Look-up of an object in a table of class names."""

import difflib
from collections.abc import Container, Iterable
from typing import Any


def by_class(names: Container[str], obj: Any) -> str | None:
    """Find the name of the object's class, or of its nearest base class, among ``names``.

    Classes are known by their names, so that no table imports the library that defines them.

    Args:
        names: Class names, such as the keys of a table.
        obj: Any object.

    Returns:
        The name; None if no class of the object is among ``names``.
    """
    return next((cls.__name__ for cls in type(obj).__mro__ if cls.__name__ in names), None)


def nearest(name: str, names: Iterable[str]) -> str:
    """Write the three of ``names`` that are most like ``name``, and how many others there are."""
    known = list(names)
    near = difflib.get_close_matches(name, known, 3, cutoff=0)
    return f"{', '.join(near)} and {len(known) - len(near)} more"


def shortened(name: str, length: int = 60) -> str:
    """Cut a long name, for an error message."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
