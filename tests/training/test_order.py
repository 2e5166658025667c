"""Runs of one concept: every epoch is still a permutation, and a batch holds several images of a concept."""

import torch
from accelerate import Accelerator

from clip_guidance.training.order import SampleOrder, batches, in_runs

CONCEPTS = [f"concept {i % 25}" for i in range(100)]  # four samples of each


def test_runs_are_a_permutation_of_neighbours():
    order = in_runs(torch.randperm(100, generator=torch.Generator().manual_seed(1)), CONCEPTS, 2, torch.Generator())
    assert sorted(order.tolist()) == list(range(100))
    pairs = order.view(50, 2).tolist()
    assert all(CONCEPTS[a] == CONCEPTS[b] for a, b in pairs)
    assert len({CONCEPTS[a] for a, _ in pairs[:25]}) > 10  # the runs of a concept are apart


def test_an_epoch_has_each_sample_once_and_another_order_than_the_next():
    endless = batches(100, 20, seed=3, concepts=CONCEPTS, run=2)
    epochs = [torch.cat([next(endless) for _ in range(5)]).tolist() for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(100)) and epochs[0] != epochs[1]


def test_a_run_that_goes_on_finds_the_same_batches():
    orders = [SampleOrder(100, 20, 3, Accelerator(), CONCEPTS, 2) for _ in range(2)]
    steps = [orders[0](step).tolist() for step in range(8)]
    assert [orders[1](step).tolist() for step in (6, 7)] == steps[6:]
    plain = SampleOrder(100, 20, 3, Accelerator(), CONCEPTS, 1)
    assert plain(0).tolist() == next(batches(100, 20, 3)).tolist()  # as before there were runs
