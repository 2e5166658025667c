"""What is attached to one pipeline, and where in a run of it we are."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from clip_guidance.guidance.adapters.call_stack import PipelineCall
from clip_guidance.guidance.adapters.schedulers import count_steps, fraction_done
from clip_guidance.guidance.engine.host import Host, resolve


class Options(Protocol):
    """What a user has set, as far as it concerns when it acts."""

    @property
    def start(self) -> float | None:
        """Fraction of the run's steps before which nothing is done; None for a default."""

    @property
    def stop(self) -> float | None:
        """Fraction of the run's steps from which on nothing is done; None for a default."""

    def is_active(self, fraction: float) -> bool:
        """Return whether the step at this fraction of the run's steps is one to act at."""

    def start_run(self) -> Any:
        """Start the report over, and return it."""


@dataclass
class Run:
    """Hold where a run of the pipeline is.

    Attributes:
        first: Position of its first step in the scheduler's timesteps.
        count: Number of its steps; None if it goes to the end of the timesteps.
        index: Position of the latest step in the scheduler's timesteps.
        done: Fraction of the run that is done before that step, in [0, 1).
        acted: Whether a step was acted at.
        moved: Whether a shift was other than zero, or was left out.
    """

    first: int
    count: int | None
    index: int
    done: float = 0.0
    acted: bool = False
    moved: bool = False


class BaseAttachment:
    """Hold what acts at the steps of one pipeline, and where its run is; a subclass says what it does.

    Args:
        options: What the user has set.
        pipe: The pipeline, or what is known of it.

    Raises:
        UnsupportedSchedulerError: The scheduler's noise levels are not known.
        ValueError: ``pipe`` has no scheduler or denoiser, or is known not to work.
    """

    #: Whether the denoiser's outputs must be watched, for what classifier-free guidance makes of them.
    needs_outputs = False
    #: Number of shifts that were left out.
    dropped = 0
    #: Whether another pipeline that shares the scheduler took a step.
    passed_by = False
    #: Who attached it, as :func:`~clip_guidance.guidance.engine.threads.enter` notes it.
    origin: Any = None
    #: What :meth:`why_idle` calls it, and what it does.
    _name, _verb = "guidance", "steered"

    def __init__(self, options: Options, pipe: Any | Host) -> None:
        self.host = pipe if isinstance(pipe, Host) else resolve(pipe)
        self.report: Any = None
        #: The networks whose forwards are recorded, for mode "exact".
        self.recorded: list[nn.Module] = []
        #: The networks that a gradient passes through.
        self.networks: list[nn.Module] = []
        self._options = options
        self._run: Run | None = None
        self._idle: Run | None = None  # the latest run that was left as it was
        self._told: set[str] = set()  # what was warned of, by its kind

    @property
    def is_watching(self) -> bool:
        """Whether the denoiser's forwards matter, beside ``scheduler.step``."""
        return bool(self.recorded) or self.needs_outputs

    def applies_to(self, call: PipelineCall | None) -> bool:
        """Return whether ``call`` is one of this pipeline, or a loop written by hand."""
        return self.host.is_called(call)

    def begin_step(self, index: int, call: PipelineCall | None) -> bool:
        """Begin a step; return whether it is one to act at.

        Args:
            index: Position of the step in the scheduler's timesteps; one that does not rise begins another run.
            call: The pipeline's call that the step belongs to; None in a loop written by hand.
        """
        scheduler = self.host.scheduler
        if self._run is None or index <= self._run.index:
            count = count_steps(scheduler, call.timesteps if call else None, index)
            self.begin_run(Run(index, count, index), call)
        assert self._run is not None
        return self.enter_step(index, fraction_done(scheduler, index, self._run.first, self._run.count))

    def begin_run(self, run: Run, call: PipelineCall | None = None) -> None:
        """End the run before, and begin one."""
        self._end_run()
        self._start_run(call)
        self.report = self._options.start_run()
        self._run = run

    def enter_step(self, index: int, done: float) -> bool:
        """Note where the run is; return whether the step at this fraction of it is one to act at."""
        assert self._run is not None  # begin_run comes first
        self._run.index, self._run.done = index, done
        return self._is_active(done)

    def _is_active(self, fraction: float) -> bool:
        return self._options.is_active(fraction)

    @property
    def _window(self) -> tuple[float, float]:
        return self._options.start or 0.0, 1.0 if self._options.stop is None else self._options.stop

    def take_rows(self, parents: Tensor) -> None:
        """Follow the samples, (B,), that have taken the place of others after a step."""

    def _start_run(self, call: PipelineCall | None) -> None:
        """Forget what belongs to the run before."""

    def _end_run(self) -> None:
        if self._run is not None and not self._run.moved:
            self._idle = self._run
        self._run = None

    def why_idle(self) -> str | None:
        """End the latest run; say why a run was left as it was; None if there was none such."""
        has_run = self._run is not None
        self._end_run()
        if self._idle is not None:
            return self._why(self._idle)
        if self.passed_by and not has_run:
            return (
                f"{self._name} was attached to a {type(self.host.pipe).__name__} that took no step, while another "
                "pipeline ran that shares its scheduler. Attach to the pipeline that is called"
            )
        return None

    def _why(self, run: Run) -> str:
        schedule = "" if getattr(self._options, "schedule", None) is None else " and the schedule"
        start, stop = self._window
        return (
            f"{self._name} {self._verb} no step of a run: start={start}, stop={stop}{schedule} leave "
            "none of its steps. Widen them, or take more steps"
        )

    def _tell(self, message: str, kind: str | None = None) -> None:
        """Warn, once of each kind: by default of each text."""
        if (kind or message) not in self._told:
            self._told.add(kind or message)
            warnings.warn(message, stacklevel=3)


def warn_of_idle(attachments: Sequence[BaseAttachment], stacklevel: int) -> None:
    """Warn once where a run, or a whole ``with`` block, went by without a step at which anything acted."""
    for why in dict.fromkeys(filter(None, [attachment.why_idle() for attachment in attachments])):
        warnings.warn(why, stacklevel=stacklevel + 1)


def warn_of_dropped(attachments: Sequence[BaseAttachment], stacklevel: int) -> None:
    """Warn once of all shifts that were left out because they were not finite."""
    dropped = sum(attachment.dropped for attachment in attachments)
    if dropped:
        warnings.warn(
            f"guidance left out {dropped} shifts that were not finite; these images were steered less. A "
            "reward, decoder or denoiser in float16 is the usual cause",
            stacklevel=stacklevel + 1,
        )
