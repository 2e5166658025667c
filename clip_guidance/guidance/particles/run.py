"""Particles on one pipeline: after some of its steps rows of the batch take the place of others."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clip_guidance.guidance.adapters import noise_level
from clip_guidance.guidance.adapters.call_stack import PipelineCall
from clip_guidance.guidance.adapters.prediction import Prediction
from clip_guidance.guidance.adapters.schedulers import count_steps, fraction_done, num_steps
from clip_guidance.guidance.engine.batch import BatchLayout, model_mean
from clip_guidance.guidance.engine.decoder import Decoder
from clip_guidance.guidance.engine.host import resolve
from clip_guidance.guidance.engine.rating import Rater
from clip_guidance.guidance.particles.options import ParticleOptions
from clip_guidance.guidance.particles.population import Population, flat_rows
from clip_guidance.guidance.particles.rows import take_rows, with_rows

_ROUNDING = 1e-9  # of a fraction of the run


@dataclass
class _Run:
    """Hold where a run is, and what its n groups of k particles have been through.

    Attributes:
        first: Position of its first step in the scheduler's timesteps.
        end: Position after its last step.
        is_cut: Whether the pipeline ends before the scheduler's timesteps do.
        index: Position of the latest step.
        groups: Number n of groups.
        population: Who went on from whom.
        is_due: Whether the particles are to be resampled as soon as the scheduler is between two steps.
        copies: For each row of a copied particle the row that it is a copy of, until the next step has told them apart.
        is_done: Whether the last step was taken.
    """

    first: int
    end: int
    is_cut: bool
    index: int
    groups: int
    population: Population
    is_due: bool = False
    copies: dict[int, int] = field(default_factory=dict)
    is_done: bool = False


class ParticleRuns:
    """Follow the runs of one pipeline, for :class:`~clip_guidance.guidance.engine.step.Steering`.

    Args:
        particles: The options.
        pipe: The pipeline.

    Raises:
        UnsupportedSchedulerError: The scheduler's noise levels are not known.
        ValueError: ``pipe`` has no scheduler or denoiser, or its samples cannot be decoded.
    """

    def __init__(self, particles: ParticleOptions, pipe: Any) -> None:
        self.host = resolve(pipe)
        #: Who attached the particles, as :func:`~clip_guidance.guidance.engine.threads.enter` notes it.
        self.origin: Any = None
        self._particles = particles
        decoder = Decoder(pipe, particles.space, particles.decoding, self.host.adapter, particles.to_image)
        self._rater = Rater(particles.reward, decoder, particles.batch_size)
        self._run: _Run | None = None
        self._told_of_copies = False

    def applies_to(self, call: PipelineCall | None) -> bool:
        """Return whether ``call`` is one of this pipeline, or a loop written by hand."""
        return self.host.is_called(call)

    def take(
        self, step: Callable[..., Any], given: inspect.BoundArguments, index: int, call: PipelineCall | None
    ) -> tuple[Any, Tensor | None]:
        """Take a step of the scheduler, and exchange particles after it where it is time.

        Returns:
            The step's output, and the particle (n·k,) that each goes on from; None where each goes on from itself.
        """
        scheduler, sample = self.host.scheduler, given.arguments["sample"]
        layout = BatchLayout.of(sample, self.host.adapter, call)
        run = self._begun(index, call, len(layout.samples(sample)))
        is_last = index + 1 >= run.end
        run.is_due = run.is_due or self._is_passed(run, is_last)
        if not (run.is_due or is_last):
            result = step(*given.args, **given.kwargs)
            self._tell_of_copies(run, layout.samples(result[0]))
            return result, None
        x0 = self._x0(given.arguments, layout, index)
        result = step(*given.args, **given.kwargs)
        self._tell_of_copies(run, layout.samples(result[0]))
        if is_last:
            is_clean = not run.is_cut and self.host.scheduler_adapter.level is not noise_level.trigflow
            parents = self._finish(run, layout.samples(result[0]) if is_clean else x0, call)
        elif run.is_due and getattr(scheduler, "state_in_first_order", True):
            parents = self._resample(run, x0, call)
        else:
            return result, None
        flat = flat_rows(parents)
        rows = layout.rows(flat)
        take_rows(scheduler, rows)
        return with_rows(result, rows), flat

    def end(self) -> None:
        """Tell of a run that did not come to its end, or of none."""
        scheduler = type(self.host.scheduler).__name__
        if self._run is None:
            what = f"took no step of its {scheduler} inside the `with` block, so that no particle travelled"
            warnings.warn(f"the {type(self.host.pipe).__name__} {what}", stacklevel=4)
        elif not self._run.is_done:
            done, count = self._run.index + 1 - self._run.first, self._run.end - self._run.first
            what = f"a run ended after {done} of {count} steps of the {scheduler}"
            warnings.warn(f"{what}: its images are in no order, and have no result", stacklevel=4)

    def _begun(self, index: int, call: PipelineCall | None, batch: int) -> _Run:
        """Return the run that a step belongs to, a new one where the index does not rise."""
        if self._run is None or index <= self._run.index:
            particles, scheduler = self._particles, self.host.scheduler
            groups, steps = self._groups(batch, call), num_steps(scheduler)
            count = count_steps(scheduler, call.timesteps if call else None, index)
            self._rater.start_run(call)
            self._run = _Run(
                first=index,
                end=steps if count is None else index + count,
                is_cut=count is not None,
                index=index,
                groups=groups,
                population=Population(particles, groups, _seeds(call, batch, groups)),
            )
        self._run.index = index
        return self._run

    def _groups(self, batch: int, call: PipelineCall | None) -> int:
        """Return the number of groups in a batch.

        Raises:
            ValueError: It does not hold a multiple of k images of each prompt.
        """
        k, variables = self._particles.k, call.variables if call is not None else {}
        for name in ("num_images_per_prompt", "num_videos_per_prompt"):
            if isinstance(count := variables.get(name), int) and count % k and not _repeats(variables.get("prompt"), k):
                raise ValueError(
                    f"Particles(k={k}) needs k images of each prompt: pass {name}={k}, got {count}; to a pipeline that "
                    "does not read it pass each prompt k times"
                )
        if batch % k:
            raise ValueError(f"Particles(k={k}) needs a batch of k samples for each prompt, got a batch of {batch}")
        return batch // k

    def _is_passed(self, run: _Run, is_last: bool) -> bool:
        """Return whether the run passes one of the fractions at which it is resampled in this step."""
        count = run.end - run.first if run.is_cut else None
        before = fraction_done(self.host.scheduler, run.index, run.first, count)
        after = 1.0 if is_last else fraction_done(self.host.scheduler, run.index + 1, run.first, count)
        return any(before + _ROUNDING < at <= after + _ROUNDING for at in self._particles.fractions)

    def _x0(self, arguments: dict[str, Any], layout: BatchLayout, index: int) -> Tensor:
        """Predict the clean samples before a step, with what guidance has made of them."""
        output, timestep, sample = (arguments[name] for name in ("model_output", "timestep", "sample"))
        mean, level = model_mean(output, sample, index).detach(), self.host.noise_level(timestep)
        return Prediction(layout.samples(mean), layout.samples(sample), level, self.host.prediction_type).x0

    def _resample(self, run: _Run, x0: Tensor, call: PipelineCall | None) -> Tensor:
        """Weigh the particles by the rewards of ``x0``; return the parents, (n, k)."""
        run.is_due = False
        parents = run.population.resample(self._rater(x0, run.groups, call), run.index)
        if not self._particles.is_warm_start:
            rows = flat_rows(parents).tolist()
            run.copies = {row: parent for row, parent in enumerate(rows) if parent != row}
        return parents

    def _finish(self, run: _Run, clean: Tensor, call: PipelineCall | None) -> Tensor:
        """Weigh the clean samples and report the run; return their places in the order of falling rewards, (n, k)."""
        order, result = run.population.rank(self._rater(clean, run.groups, call), run.index, run.end - run.first)
        run.is_done = True
        self._particles.hold(result)
        return order

    def _tell_of_copies(self, run: _Run, samples: Tensor) -> None:
        """Warn, once, where the step after a resampling did not tell copies from one another."""
        if not getattr(self.host.scheduler, "state_in_first_order", True):
            return
        copies, run.copies = run.copies, {}
        if (
            copies
            and not self._told_of_copies
            and all(samples[copy].equal(samples[parent]) for copy, parent in copies.items())
        ):
            self._told_of_copies = True
            warnings.warn(
                f"copies of a particle stay equal: the {type(self.host.scheduler).__name__} added no noise in the step "
                "after they were made. Pass eta=1 to a DDIM pipeline, take an ancestral or SDE scheduler, resample "
                "earlier, or use potential='best'",
                stacklevel=2,
            )


def _repeats(prompts: Any, k: int) -> bool:
    """Return whether each prompt of a list comes k times in succession."""
    if not isinstance(prompts, list | tuple) or not prompts or len(prompts) % k:
        return False
    return all(prompts[i] == prompts[i - i % k] for i in range(len(prompts)))


def _seeds(call: PipelineCall | None, batch: int, groups: int) -> Tensor | None:
    """Return the seeds of a call's generators, (n, k), if it has one for each sample."""
    generators = None if call is None else call.variables.get("generator")
    if not isinstance(generators, list | tuple) or len(generators) != batch:
        return None
    seeds = [(each.initial_seed() + 2**63) % 2**64 - 2**63 for each in generators]  # of -1, torch tells 2⁶⁴ − 1
    return torch.tensor(seeds, dtype=torch.int64).view(groups, -1)
