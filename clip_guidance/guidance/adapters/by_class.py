"""Look-up of an object in a table of class names."""

from collections.abc import Container
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
