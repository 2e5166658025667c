"""What all that attaches to a pipeline shares: its window, what its reward reads, when options may change."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from diffusers.guiders import BaseGuidance
from torch import Tensor

from clip_guidance.guidance.checks import Checked, as_number, shown
from clip_guidance.guidance.decoding import AUTO, Decoding

SPACES = ("image", "latent")
_lock = threading.Lock()


class Attachable(Checked):
    """Check the options that all share, and keep those that ``attach`` reads while it is attached.

    A subclass is a dataclass with these options among its fields.
    """

    reward: Any
    start: float | None
    stop: float | None
    space: str
    decoding: Decoding | str | None
    to_image: Callable[[Tensor], Tensor] | None
    guider: BaseGuidance | None

    #: The options that ``attach`` reads.
    _at_attach: ClassVar[tuple[str, ...]] = ("space", "decoding", "to_image")
    #: The options that may be None, which stands for a default of the pipeline.
    _left_open: ClassVar[tuple[str, ...]] = ()
    _attached = 0  # number of ``with`` blocks in which it is attached

    def _check(self) -> None:
        ends = {name: getattr(self, name) for name in ("start", "stop")}
        given = {n: as_number(n, each) for n, each in ends.items() if each is not None or n not in self._left_open}
        start, stop = given.get("start", 0.0), given.get("stop", 1.0)
        if not 0 <= start < stop <= 1:
            raise ValueError(f"expected 0 <= start < stop <= 1, got start={shown(start)}, stop={shown(stop)}")
        if not isinstance(self.space, str) or self.space not in SPACES:
            raise ValueError(f"space must be one of {', '.join(SPACES)}, got {shown(self.space)}")
        if self.to_image is not None and not callable(self.to_image):
            raise TypeError(f"to_image must be callable, got {type(self.to_image).__name__}")
        if isinstance(self.decoding, str) and self.decoding != AUTO:
            raise ValueError(f"decoding must be 'auto', a Decoding, or None, got {shown(self.decoding)}")
        if not isinstance(self.decoding, Decoding | str | None):
            raise TypeError(f"decoding must be 'auto', a Decoding, or None, got {type(self.decoding).__name__}")
        if self.to_image is not None and (self.space != "image" or isinstance(self.decoding, Decoding)):
            raise ValueError(
                "to_image makes the images that the reward reads, in place of space='latent' and of a decoding; "
                "give one of the three"
            )
        self._check_regions()
        if self.guider is not None and not isinstance(self.guider, BaseGuidance):
            raise TypeError(
                "guider must be a guider of diffusers, such as ClassifierFreeGuidance, or None, got "
                f"{type(self.guider).__name__}"
            )
        vars(self).update(given)  # Python's own numbers, which a config can hold

    def _check_regions(self) -> None:
        crops = isinstance(self.decoding, Decoding) and self.decoding.crop < 1
        if crops and getattr(self.reward, "has_regions", False):
            raise ValueError(
                "a region is a part of the whole image, of which decoding.crop below 1 decodes another window at each "
                "step; use resolution, checkpoint or images to save memory"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; an option acts from the next step on, or, if it is read by ``attach``, before that alone.

        Raises:
            AttributeError: The option cannot change while it is attached.
        """
        if self._attached and self._is_read_at_attach(name):
            raise AttributeError(f"{name} acts when the guidance is attached: set it outside of the `with` block")
        super().__setattr__(name, value)

    def _is_read_at_attach(self, name: str) -> bool:
        return name in self._at_attach

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep the options as they are that ``attach`` has read, inside the ``with`` block."""
        with _lock:
            self._attached += 1
        try:
            yield
        finally:
            with _lock:
                self._attached -= 1

    def check_alone(self) -> None:
        """Refuse to attach what goes around a guider.

        Raises:
            ValueError: There is one.
        """
        if self.guider is not None:
            raise ValueError(
                "attach() steers what the pipeline predicts by itself, and does not use guider="
                f"{type(self.guider).__name__}. Leave it out, or make this guidance the guider of a modular pipeline: "
                "`pipe.update_components(guider=guidance)`"
            )

    @property
    def any_scale(self) -> bool:
        """Whether anything is to be done at all."""
        return True

    def prepare(self, pipe: Any) -> None:
        """Prepare for acting on ``pipe``; a subclass may move its reward, nothing is done here."""
