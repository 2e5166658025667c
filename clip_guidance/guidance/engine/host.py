"""What is known of the pipeline that is guided, looked up once."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from clip_guidance.guidance.adapters.call_stack import PIPELINES, PipelineCall
from clip_guidance.guidance.adapters.noise_level import NoiseLevel
from clip_guidance.guidance.adapters.pipelines import Adapter, describe, find_adapter
from clip_guidance.guidance.adapters.prediction import PredictionType
from clip_guidance.guidance.adapters.schedulers import SchedulerAdapter, find_scheduler_adapter, noise_level


@dataclass(frozen=True)
class Host:
    """Hold a pipeline with the facts that steering needs of it.

    Attributes:
        pipe: The pipeline.
        scheduler: The scheduler that it holds when it is looked up.
        adapter: Which networks it has, and how its samples become images.
        scheduler_adapter: What is known of the scheduler's class.
        prediction_type: What the scheduler takes the model output to be.
        denoisers: The networks that predict the noise; two where the pipeline changes networks on the way,
            or has one without a prompt.
    """

    pipe: Any
    scheduler: Any
    adapter: Adapter
    scheduler_adapter: SchedulerAdapter
    prediction_type: PredictionType
    denoisers: list[nn.Module]

    @property
    def readers(self) -> list[nn.Module]:
        """The networks that read the noisy sample: the denoisers and a ControlNet."""
        return [*self.denoisers, *_modules(self.pipe, "controlnet")]

    def is_called(self, call: PipelineCall | None) -> bool:
        """Return whether ``call`` is one of this pipeline, or a loop written by hand."""
        return call is None or call.pipe is self.pipe or not isinstance(self.pipe, PIPELINES)

    def noise_level(self, timestep: float | Tensor) -> NoiseLevel:
        """Return the noise level of the sample that ``scheduler.step`` receives at ``timestep``."""
        return noise_level(self.scheduler, timestep, self.scheduler_adapter)


def resolve(pipe: Any) -> Host:
    """Look up what is known of ``pipe``, its scheduler and its networks.

    Args:
        pipe: A diffusers pipeline, or any object with a ``scheduler`` and a denoiser.

    Raises:
        UnsupportedSchedulerError: The scheduler's noise levels, or what it predicts, are not known.
        ValueError: ``pipe`` has no scheduler or denoiser, or is known not to work.
    """
    adapter = find_adapter(pipe)
    scheduler = getattr(pipe, adapter.scheduler, None)
    if scheduler is None:
        raise ValueError(f"guidance needs a pipeline with a scheduler; {describe(pipe)}")
    scheduler_adapter = find_scheduler_adapter(scheduler)
    kind = scheduler_adapter.prediction(scheduler)
    denoisers = _modules(pipe, adapter.denoiser, f"{adapter.denoiser}_2", f"unconditional_{adapter.denoiser}")
    return Host(pipe, scheduler, adapter, scheduler_adapter, kind, denoisers)


def _modules(pipe: Any, *names: str) -> list[nn.Module]:
    found = (getattr(pipe, name, None) for name in names)
    return [module for module in found if isinstance(module, nn.Module)]
