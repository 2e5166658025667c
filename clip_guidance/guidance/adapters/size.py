"""The size of the images that a pipeline makes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Hold the height and width of a pipeline's images.

    Attributes:
        height: In pixels.
        width: In pixels.
    """

    height: int
    width: int
