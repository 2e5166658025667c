"""Rate clean samples: decode them as guidance does, and ask a reward of any form."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from clip_guidance.guidance.adapters.call_stack import PipelineCall
from clip_guidance.guidance.engine.decoder import Decoder, at_a_time
from clip_guidance.rewards.protocol import ImageJudge, Reward, as_judge, one_per_image, readable_prompts, reward_name


class Rater:
    """Rate groups of clean samples without a gradient.

    Args:
        reward: What ``as_judge`` takes, or of latents a function of tensors.
        decoder: Maps clean samples to what the reward reads.
        batch_size: Number of samples of each group that are rated together.
    """

    def __init__(self, reward: Reward, decoder: Decoder, batch_size: int) -> None:
        self._reward, self._decoder, self._batch_size = reward, decoder, batch_size
        self._judge: ImageJudge | None = None

    def start_run(self, call: PipelineCall | None) -> None:
        """Begin a run, whose prompts a reward with ``score`` reads that has none of its own.

        Raises:
            ValueError: The reward needs prompts, and there are none.
        """
        self._decoder.start_run()
        if self._decoder.space == "image":
            self._judge = as_judge(self._reward, readable_prompts(call.variables.get("prompt") if call else None))

    @torch.no_grad()
    def __call__(self, clean: Tensor, groups: int, call: PipelineCall | None) -> Tensor:
        """Rate clean samples (n·k, ...), group by group; returns float64 (n, k), NaN where one is not finite.

        Raises:
            RewardError: The reward does not return one number per image.
        """
        self._decoder.start_step()
        latents = self._decoder.unpack(clean, call).unflatten(0, (groups, -1))
        rated = [self._rated(part.flatten(0, 1)) for part in latents.split(self._batch_size, 1)]
        return torch.cat([each.double().cpu().unflatten(0, (groups, -1)) for each in rated], 1)

    @torch.no_grad()
    def versions(self, cleans: Iterable[Tensor], call: PipelineCall | None) -> Tensor:
        """Rate versions of the same clean samples, each (B, ...), alike; returns float64 (versions, B), NaN as above.

        Raises:
            RewardError: The reward does not return one number per image.
        """
        self._decoder.start_step()
        return torch.stack([self._rated(self._decoder.unpack(clean, call)).double().cpu() for clean in cleans])

    def _rated(self, latents: Tensor) -> Tensor:
        self._decoder.fit(self._reward, latents)
        finite = latents.isfinite().flatten(1).all(1)
        parts = latents.nan_to_num(0.0, 0.0, 0.0).split(at_a_time(self._decoder.decoding, len(latents)))
        images = torch.cat([self._decoder.decode(part) for part in parts])
        finite &= images.isfinite().flatten(1).all(1)
        return torch.where(finite.cpu(), self._of_images(images.nan_to_num(0.0, 0.0, 0.0)).cpu(), torch.nan)

    def _of_images(self, images: Tensor) -> Tensor:
        getattr(self._reward, "reset", lambda: None)()  # random crops are the same for all particles
        if self._judge is None:
            function: Any = self._reward
            return one_per_image(function(images), len(images), reward_name(function)).detach()
        if images.ndim == 5:  # a video's reward is the mean of its frames'
            frames = images.transpose(1, 2)
            return self._judge.ratings(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).mean(1)
        return self._judge.ratings(images)
