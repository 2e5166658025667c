"""Options of particles, checked: what a run reads."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field

from torch import Tensor

from clip_guidance.guidance.arguments import check_seed
from clip_guidance.guidance.checks import as_number, as_numbers, as_whole, shown
from clip_guidance.guidance.decoding import Decoding
from clip_guidance.guidance.options import SPACES
from clip_guidance.guidance.particles.potentials import POTENTIALS
from clip_guidance.guidance.particles.result import ParticlesResult
from clip_guidance.rewards.protocol import Reward, as_judge

_WARM_START = "best"


@dataclass(frozen=True, eq=False)
class ParticleOptions:
    """Hold and check the options of particles, and the result of their latest run.

    :class:`~clip_guidance.guidance.particles.Particles` documents each of them.
    """

    reward: Reward = field(repr=False)
    k: int
    _: KW_ONLY
    resample_at: float | Sequence[float] = (0.2, 0.4, 0.6, 0.8)
    potential: str = "difference"
    scale: float | None = None
    seed: int = 0
    batch_size: int = 4
    space: str = "image"
    decoding: Decoding | None = None
    to_image: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise ValueError(f"space must be one of {', '.join(SPACES)}, got {shown(self.space)}")
        as_judge(self.reward, "any prompt")  # refuses what is no reward
        if self.space == "latent" and not callable(self.reward):
            raise TypeError(f"space='latent' needs a function of latents, got {type(self.reward).__name__}")
        if self.space == "latent" and (self.decoding is not None or self.to_image is not None):
            raise ValueError("space='latent' decodes nothing: leave out decoding and to_image")
        if self.decoding is not None and self.to_image is not None:
            raise ValueError("to_image makes the images in place of a decoding: give one of the two")
        if self.potential not in (*POTENTIALS, _WARM_START):
            known = ", ".join((*POTENTIALS, _WARM_START))
            raise ValueError(f"potential must be one of {known}, got {shown(self.potential)}")
        scale = 1.0 if self.scale is None else as_number("scale", self.scale)
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale must be above 0 and finite, got {shown(self.scale)}: -reward lowers a reward")
        if self.scale is not None and self.is_warm_start:
            raise ValueError(f"potential='best' takes the best whatever the scale: leave out scale={shown(self.scale)}")
        check_seed(self.seed)
        vars(self).update(
            k=as_whole("k", self.k, "at least 1 particle per prompt", 1),
            batch_size=as_whole("batch_size", self.batch_size, "at least 1", 1),
            resample_at=_fractions(self.resample_at),
            _result=None,
        )

    @property
    def is_warm_start(self) -> bool:
        """Whether the best of each group goes on alone."""
        return self.potential == _WARM_START

    @property
    def fractions(self) -> tuple[float, ...]:
        """The fractions of the run after which particles are resampled, in rising order."""
        return _fractions(self.resample_at)

    @property
    def result(self) -> ParticlesResult | None:
        """What happened in the latest run; None before its end."""
        return vars(self)["_result"]

    def hold(self, result: ParticlesResult) -> None:
        """Keep the result of a run."""
        vars(self)["_result"] = result


def _fractions(value: float | Sequence[float]) -> tuple[float, ...]:
    """Return fractions of a run in rising order.

    Raises:
        ValueError: One is not in (0, 1).
    """
    found = [] if isinstance(value, tuple | list) and not value else as_numbers("resample_at", value)
    if not all(0 < each < 1 for each in found):
        raise ValueError(f"resample_at must be fractions of the run, in (0, 1), got {shown(value)}")
    return tuple(sorted(set(found)))
