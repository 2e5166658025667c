"""Best of n, the simplest search over a pipeline's noise: draw n candidates, and rank them by a reward.

    xᵢ ~ p(image | prompt) from the noise of seed + i,  i = 0 ... n − 1,    in the order of falling r(xᵢ)

No gradient is needed, so that the reward may be any callable of PIL images. No candidate depends on another, so that
several processes may share them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from clip_guidance._display import DisplayMixin
from clip_guidance.generation.image import FailedImageError
from clip_guidance.guidance.checks import as_whole
from clip_guidance.images.load import load_image
from clip_guidance.metrics.job.processes import Processes
from clip_guidance.rewards import ImageJudge, as_judge
from clip_guidance.rewards.protocol import Reward, readable_prompts

_OURS = {  # arguments of a pipeline that the search sets
    "generator": "seed",
    "num_images_per_prompt": "n",
}


@dataclass(frozen=True)
class FailedCandidate:
    """Name a candidate that cannot be ranked, and why."""

    seed: int
    reason: str


@dataclass(frozen=True)
class SearchResult(DisplayMixin):
    """Hold what a search found for a prompt; a notebook shows the images with their rewards.

    Attributes:
        images: Images as the pipeline returned them, best first.
        rewards: Reward of each image.
        seeds: Seed of each image: ``torch.Generator().manual_seed(seed)`` draws it again.
        evaluations: Number of candidates that were drawn and rated, the failed ones included.
        seconds: Seconds that the whole search took, of all prompts.
        failed: Candidates that came out empty, were flagged by the safety checker, or have no finite reward.
    """

    images: list[Any]
    rewards: list[float]
    seeds: list[int]
    evaluations: int
    seconds: float
    failed: list[FailedCandidate] = field(default_factory=list)


@dataclass(frozen=True)
class Candidate:
    """Hold a candidate that was drawn; ``problem`` says why it cannot be ranked, and is empty where it can."""

    image: Any
    reward: float
    seed: int
    problem: str = ""


Draw: TypeAlias = Callable[[range], list[list[Candidate]]]  # of some seeds, for each prompt the candidates


def best_of(
    pipe: Any, n: int, reward: Reward, *, seed: int = 0, batch_size: int = 1, accelerator: Any = None, **call: Any
) -> SearchResult | list[SearchResult]:
    """Draw n candidates of each prompt and rank them by a reward.

    Args:
        pipe: A pipeline of diffusers, or any callable with the argument ``generator`` whose result has ``images``; a
            guidance may be attached to it.
        n: Number of candidates per prompt, at least 1. They have the seeds ``seed`` to ``seed + n - 1``.
        reward: What ``as_judge`` takes: a function of images (B, 3, H, W) in [0, 1] or of a list of PIL images, to one
            number each, or an object with ``score(images, prompts)``, such as what ``load_reward`` returns. It rates
            against prompts of its own, if it has any, or else against those of the pipeline.
        seed: Seed of the first candidate.
        batch_size: Candidates of each prompt that are drawn and rated together, by ``num_images_per_prompt``; more
            take more memory and change the images by rounding alone.
        accelerator: The ``Accelerator`` or ``PartialState`` of a program that ``accelerate launch`` started in several
            processes: they share the batches, and each returns the result of one process, to the last bit; images that
            are tensors come back on the CPU. The ``Processes`` of ``find_processes`` do the same, and name a process
            that ended or whose machine vanished. None where each process searches for itself.
        call: Arguments of the pipeline: ``prompt="a red apple"``, ``num_inference_steps`` ... With a list of prompts
            each call draws all of them, so that what has an entry per prompt (``negative_prompt``, the prompts of a
            guidance) keeps it.

    Returns:
        The result; with a list of prompts, or embeddings of several, a list of results, one per prompt.

    Raises:
        TypeError: ``reward`` or ``accelerator`` is none, the pipeline returns no images, or ``call`` has an argument
            that the search sets.
        RewardError: The reward does not return one number per image.
        ValueError: ``n`` or ``batch_size`` is below 1, or latents are asked for.
        FailedImageError: Every candidate failed; the message says why the first one did.

    Example:
        >>> import clip_guidance as cg
        >>> pipe = cg.load_pipeline("emoji")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> def redness(images):
        ...     return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))
        >>> found = cg.best_of(pipe, 3, redness, prompt="a noto picture of an apple", num_inference_steps=2)
        >>> found.rewards == sorted(found.rewards, reverse=True), sorted(found.seeds), found.evaluations
        (True, [0, 1, 2], 3)
    """
    n, batch_size = (as_whole(*each, "at least 1", 1) for each in (("n", n), ("batch_size", batch_size)))
    _check(call)
    count = _count(call)
    draw = partial(_draw, pipe, call, count, as_judge(reward, readable_prompts(call.get("prompt"))))
    results = search(draw, range(seed, seed + n), batch_size, accelerator)
    _warn(results)
    return results if count > 1 or isinstance(call.get("prompt"), list | tuple) else results[0]


def search(draw: Draw, seeds: range, batch_size: int = 1, accelerator: Any = None) -> list[SearchResult]:
    """Draw candidates from seeds, batch by batch, and rank those of each prompt.

    A batch is the same whichever process draws it, so that their number changes nothing.

    Args:
        draw: Draws and rates the candidates of a batch of seeds.
        seeds: All seeds, at least one.
        batch_size: Number of seeds in a batch.
        accelerator: As for :func:`best_of`.
    """
    started = time.perf_counter()
    batches = [seeds[first : first + batch_size] for first in range(0, len(seeds), batch_size)]
    drawn = [draw(batch) for batch in batches] if accelerator is None else _shared_out(draw, batches, accelerator)
    seconds = time.perf_counter() - started
    return [_ranked([each for batch in of_prompt for each in batch], seconds) for of_prompt in zip(*drawn, strict=True)]


def _shared_out(draw: Draw, batches: Sequence[range], accelerator: Any) -> list[list[list[Candidate]]]:
    """Draw this process's share of the batches; return what all processes drew, in the order of the batches."""
    rank, count, gather = _sharing(accelerator)
    own = [(place, draw(batches[place])) for place in range(rank, len(batches), count)]
    own = [(place, [[_on_cpu(each) for each in of_prompt] for of_prompt in drawn]) for place, drawn in own]
    return [drawn for _, drawn in sorted(gather(own), key=itemgetter(0))]


def _sharing(accelerator: Any) -> tuple[int, int, Callable[[list[Any]], list[Any]]]:
    """Return the number of this process, that of all, and what joins the lists of all."""
    if isinstance(accelerator, Processes):
        return accelerator.rank, accelerator.count, lambda own: [*chain.from_iterable(accelerator.gather(own))]
    try:
        return accelerator.process_index, accelerator.num_processes, gather_object
    except AttributeError:
        found = f"{type(accelerator).__name__} {accelerator!r:.60}"
        raise TypeError(f"accelerator must be accelerate's Accelerator or PartialState, got {found}") from None


def _on_cpu(candidate: Candidate) -> Candidate:
    """Copy an image that is a tensor: it lies in the memory of its whole batch, which would be sent with it."""
    image = candidate.image
    return replace(candidate, image=image.cpu().clone()) if isinstance(image, Tensor) else candidate


def _check(call: Mapping[str, Any]) -> None:
    for name, ours in _OURS.items():
        if name in call:
            raise TypeError(f"best_of sets {name} itself: give {ours}")
    if call.get("output_type") == "latent":
        raise ValueError("best_of ranks images: output_type must be 'pil', 'pt' or 'np', got 'latent'")
    if not call.get("return_dict", True):
        raise ValueError("best_of reads the images of the pipeline's output: return_dict must be True")


def _count(call: Mapping[str, Any]) -> int:
    """Return the number of prompts of a call."""
    prompt = call.get("prompt")
    if isinstance(prompt, list | tuple):
        return len(prompt)
    embeds = call.get("prompt_embeds")
    return len(embeds) if prompt is None and isinstance(embeds, Tensor) else 1


def _draw(pipe: Any, call: Mapping[str, Any], count: int, judge: ImageJudge, seeds: range) -> list[list[Candidate]]:
    """Draw and rate one candidate of each seed, for each prompt."""
    of_images = list(seeds) * count
    generators = [torch.Generator().manual_seed(seed) for seed in of_images]  # on the CPU: all devices get this noise
    several = {"num_images_per_prompt": len(seeds)} if len(seeds) > 1 else {}
    output = pipe(**call, **several, generator=generators if len(generators) > 1 else generators[0])
    images = getattr(output, "images", None)
    if images is None:
        raise TypeError(f"best_of ranks images, and {type(pipe).__name__} returned {type(output).__name__} without any")
    if len(images) != len(of_images):
        raise ValueError(f"expected {len(seeds)} images for each of {count} prompts, got {len(images)} in all")
    flagged = getattr(output, "nsfw_content_detected", None) or [False] * len(images)
    finite = map(_is_finite, images)
    getattr(judge.reward, "reset", lambda: None)()  # random crops are the same for all candidates
    readable = _without_nan(images)
    ratings = judge.ratings(readable).tolist()
    problems = map(_problem, readable, finite, flagged, ratings)
    drawn = [Candidate(*each) for each in zip(images, ratings, of_images, problems, strict=True)]
    return [drawn[first : first + len(seeds)] for first in range(0, len(drawn), len(seeds))]


def _is_finite(image: Any) -> bool:
    return not isinstance(image, np.ndarray | Tensor) or bool(torch.as_tensor(image).isfinite().all())


def _without_nan(images: Any) -> Any:
    """Let a reward read the neighbours of an image that is not finite."""
    if isinstance(images, np.ndarray):
        return np.nan_to_num(images, posinf=0.0, neginf=0.0)
    return images.nan_to_num(0.0, 0.0, 0.0) if isinstance(images, Tensor) else images


def _problem(image: Any, finite: bool, flagged: bool, rating: float) -> str:
    """Say why a candidate cannot be ranked; empty where it can."""
    if not finite:
        return "is not finite"
    if flagged:
        return "was flagged by the safety checker"
    if colors := load_image(image).getcolors(maxcolors=1):  # None where there are more
        return f"is of one color, {colors[0][1]}"
    return "" if np.isfinite(rating) else f"has the reward {rating}"


def _ranked(candidates: Sequence[Candidate], seconds: float) -> SearchResult:
    sound = sorted((each for each in candidates if not each.problem), key=lambda each: -each.reward)
    failed = [FailedCandidate(each.seed, each.problem) for each in candidates if each.problem]
    images, rewards, seeds = ([getattr(each, name) for each in sound] for name in ("image", "reward", "seed"))
    return SearchResult(images, rewards, seeds, len(candidates), seconds, failed)


def _warn(results: Sequence[SearchResult]) -> None:
    """Tell of candidates that failed.

    Raises:
        FailedImageError: All of them did.
    """
    failed, drawn = [each for result in results for each in result.failed], sum(each.evaluations for each in results)
    if not failed:
        return
    message = f"{len(failed)} of {drawn} candidates failed: that of seed {failed[0].seed} {failed[0].reason}"
    if len(failed) == drawn:
        raise FailedImageError(message)
    warnings.warn(f"{message}; the others are ranked, and `failed` names each", stacklevel=3)
