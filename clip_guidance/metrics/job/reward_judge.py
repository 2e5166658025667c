"""A reward as a judge of a job: PickScore, HPSv2.1, the aesthetic predictors, ImageReward."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from clip_guidance.clip.domain import DomainCheck
from clip_guidance.clip.tokenizer import PromptTruncatedWarning, one_at_a_time, warn_truncated
from clip_guidance.metrics.job.judge import Definition, Judge, Scored
from clip_guidance.metrics.job.store import record_id
from clip_guidance.rewards import PromptReward


class RewardJudge(Judge):
    """Score images by a reward, which is its one definition; :func:`make_reward_judge` makes it."""

    model: PromptReward

    def __init__(self, reward: PromptReward, fingerprint: str, key: str) -> None:
        self.model, self.fingerprint, self.key = reward, fingerprint, key
        self.embed_dim = reward.embed_dim
        self.definitions = []
        self._warned = False

    def look(self, pixel_values: Tensor) -> Tensor:
        return self.model.look(pixel_values)

    def score(self, definition: Definition, seen: Tensor, prompts: Sequence[str]) -> list[Scored]:
        if not self.model.needs_prompt:
            with torch.no_grad():
                return [Scored(number, None, False) for number in self.model.judge(seen, ()).tolist()]
        tokenizer, limit = self.model.tokenizer, self.model.context_length
        assert tokenizer is not None and limit is not None  # a reward that reads prompts has both
        tokens = [len(ids) for ids in one_at_a_time(tokenizer, list(prompts), verbose=False).input_ids]
        long = [prompt for prompt, count in zip(prompts, tokens, strict=True) if count > limit]
        if long and not self._warned:  # of the first text that is cut: the rows tell of each
            self._warned = True
            warn_truncated(tokenizer, long[:1], limit)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptTruncatedWarning)
            numbers = self.model.judge(seen, prompts).tolist()
        return [Scored(number, count, count > limit) for number, count in zip(numbers, tokens, strict=True)]


def make_reward_judge(reward: PromptReward, dtype: torch.dtype | None = None, draft: bool = False) -> RewardJudge:
    """Make a judge of a reward.

    Args:
        reward: The reward, on its device; prompts of its own are not read.
        dtype: Precision that its towers are converted to, in place; None keeps it.
        draft: Whether the images are decoded as drafts, which the record says.
    """
    fingerprint, domain = reward.fingerprint(), DomainCheck(reward)  # of the weights as they are stored
    if dtype is not None:
        reward.in_precision(dtype)
    precision = str(reward.dtype).removeprefix("torch.")
    judge = RewardJudge(reward, fingerprint, f"{fingerprint}-{precision}{'-draft' * draft}-{reward.name}")
    judge.domain = domain
    record = {**reward.record(), **({"decode": "draft"} if draft else {})}
    judge.definitions.append(Definition(reward, record, record_id(record)))
    return judge
