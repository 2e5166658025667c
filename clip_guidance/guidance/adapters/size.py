"""The size of the image that a pipeline makes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Height and width, in pixels, that a run of the pipeline was asked for."""

    height: int
    width: int
