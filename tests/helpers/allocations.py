"""Estimates beside what the CPU's allocator gives out, run as a program: one line of JSON, their ratios.

Its caller holds oneDNN to AVX2: its kernels for larger vectors take room of their own to lay out what they multiply,
which differs from processor to processor and is no part of the estimate.
"""

import copy
import gc
import itertools
import json

import torch
from torch.profiler import ProfilerActivity, profile

from clip_guidance.guidance import Decoding
from clip_guidance.guidance.engine.decoder import Decoder
from clip_guidance.guidance.engine.gradient import reward_gradient
from clip_guidance.guidance.weights.freeze import freeze_parameters
from helpers.memory_fixtures import SIDE, estimate, make_guidance, make_tiny_decoder, make_wide_pipeline


def allocated(run):
    """The most that the CPU's allocator has given out at a time during ``run()``."""
    run()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), i, e.nbytes()) for i, e in enumerate(events) if e.name() == "[memory]")
    return max(itertools.accumulate(change for _, _, change in changes))


SETTINGS = [
    (Decoding(), None, 1),
    (Decoding(), None, 3),
    (Decoding(), 1, 2),
    (Decoding(images=1), None, 3),
    (Decoding(checkpoint=True), 2, 1),
    (Decoding(checkpoint=True, images=1), 1, 3),
    (Decoding(resolution=0.5), None, 2),
    (Decoding(crop=0.5), 3, 2),
    (Decoding(decoder=make_tiny_decoder()), None, 2),
]


def ratio(pipe, guidance, decoding, chunk, batch):
    """The estimate, as a share of what is given out."""
    reward = copy.copy(guidance.reward)
    reward.chunk = chunk
    factor = 2 if decoding.decoder is not None else 4
    latents = torch.randn(batch, 4, SIDE // factor, SIDE // factor)

    def run():
        decoder = Decoder(pipe, "image", decoding)
        with freeze_parameters([reward, decoder.module]):
            reward_gradient(reward, decoder, latents)

    side = SIDE * 4 // factor  # the pipeline's own decoder enlarges by 4, the tiny one by 2
    return estimate(guidance, pipe, decoding, chunk, batch, side) / allocated(run)


if __name__ == "__main__":
    torch.set_num_threads(1)
    pipe, guidance = make_wide_pipeline(), make_guidance()
    print(json.dumps([ratio(pipe, guidance, *setting) for setting in SETTINGS]))
