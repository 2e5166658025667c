"""Particles: k images of each prompt travel together, and the promising ones multiply on the way.

No gradient chooses between the modes of a distribution, but candidates do. After some steps the reward rates what each
particle is heading to, x̂₀, and particles are resampled: those of high weight go on several times, others not at all.
With a Feynman-Kac potential the weights are such that the images follow p(x₀)·exp(scale·r(x₀)) (:mod:`.potentials`).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from clip_guidance.guidance.engine.attach import Block, steering_of
from clip_guidance.guidance.engine.threads import enter, has_entered
from clip_guidance.guidance.particles.options import ParticleOptions
from clip_guidance.guidance.particles.run import ParticleRuns


class Particles(ParticleOptions):
    """Let k images of each prompt travel together; they come out best first.

    Attach it to a pipeline and ask that for k images of each prompt, ``num_images_per_prompt=k``, or for a batch of
    multiples of k. No gradient is taken, so that any reward will do. A guidance that is attached too steers each
    particle; the tilt is then that of the guided distribution.

    Args:
        reward: What ``as_judge`` takes: a function of images (B, 3, H, W) in [0, 1] or of a list of PIL images, to one
            number each, or an object with ``score(images, prompts)``. It rates against prompts of its own, if it has
            any, or else against those of the pipeline. It reads x̂₀, decoded as guidance does.
        k: Number of particles per prompt, at least 1. The cost is that of k images and of their ratings.
        resample_at: Fractions of the run, in (0, 1), after which particles are resampled; one number or several. A
            step of second order is finished before. ``()`` ranks the images alone.
        potential: How the rewards on the way weigh: "difference" (default: what a particle has gained since the last
            resampling), "max" (its best so far), "sum" (all of them), or "best", a warm start: the best of each group
            goes on alone, k times.
        scale: Strength of the tilt exp(scale·reward), above 0; None for 1. A warm start has none.
        seed: Seed of the resampling, which draws from a generator of its own; each run starts from it.
        batch_size: Particles of each prompt that are decoded and rated together; more take more memory and change the
            rewards by rounding alone.
        space: What the reward reads of the predicted clean sample: "image", decoded, or "latent", as it is; then it
            is a function of tensors.
        decoding: How the image for the reward is decoded; None for the pipeline's decoder as it is.
        to_image: Maps the predicted clean sample (B, ...) to images (B, 3, H, W) in [0, 1], in place of a decoder.

    Raises:
        TypeError: ``reward`` is none, or another argument is of another type.
        ValueError: An argument is out of range, or two contradict each other.

    Particles that came from one parent go on with the noise of their own places: of their own generators where the
    pipeline is given a list of them. A scheduler that adds no noise leaves copies equal, which is told.

    Example:
        >>> import clip_guidance as cg
        >>> pipe = cg.load_pipeline("emoji")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> def redness(images):
        ...     return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))
        >>> with cg.Particles(redness, 3, resample_at=0.5, scale=100.0).attach(pipe) as particles:
        ...     images = pipe("an apple", num_images_per_prompt=3, num_inference_steps=4, eta=1.0).images
        >>> rewards = particles.result.rewards[0].tolist()
        >>> len(images), rewards == sorted(rewards, reverse=True), particles.result.evaluations
        (3, True, 6)
    """

    def attach(self, pipe: Any) -> AbstractContextManager["Particles"]:
        """Let particles travel through ``pipe`` inside the ``with`` block, and leave it afterwards as it was.

        Args:
            pipe: A diffusers pipeline, or any object with a ``scheduler`` and a ``unet`` or ``transformer``.

        Returns:
            A context manager that yields these particles.

        Raises:
            UnsupportedSchedulerError: The scheduler's noise levels are not known.
            ValueError: ``pipe`` has no scheduler or denoiser, or its samples cannot be decoded; on entering the block,
                if particles are attached to it already.
        """
        runs = ParticleRuns(self, pipe)
        return Block(self, lambda: self._attached(runs))

    @contextmanager
    def _attached(self, runs: ParticleRuns) -> Iterator["Particles"]:
        with steering_of(runs.host.scheduler) as steering:
            if any(has_entered([each]) for each in steering.followers if each.host.pipe is runs.host.pipe):
                raise ValueError("particles are attached to this pipeline already; one resampling of a batch is enough")
            enter(runs)
            with steering.followed_by(runs):
                yield self
        runs.end()
