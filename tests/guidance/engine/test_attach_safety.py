"""Attaching where pipelines share parts, run in threads, are abandoned half-way, or end in no order."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import DiffusionPipeline
from helpers.factories import assemble, generate, make_scheduler
from helpers.minimal_pipeline import brightness, exact_first, loop, minimal_pipeline

from clip_guidance.guidance import Guidance
from clip_guidance.guidance.adapters.call_stack import current_call
from clip_guidance.guidance.weights.freeze import freeze_parameters


@pytest.fixture
def two(networks):
    """(share_scheduler) -> two pipelines of the same networks."""

    def make(share_scheduler):
        first = assemble(**networks[torch.float32], scheduler=make_scheduler("euler"))
        scheduler = first.scheduler if share_scheduler else make_scheduler("euler")
        return first, assemble(**networks[torch.float32], scheduler=scheduler)

    return make


def untouched(*pipes):
    assert torch.is_grad_enabled()
    for pipe in pipes:
        assert "step" not in vars(pipe.scheduler)
        assert not pipe.unet._forward_pre_hooks and not pipe.unet._forward_hooks
        assert all(p.requires_grad for part in (pipe.unet, pipe.vae) for p in part.parameters())


# ---------------------------------------------------------------- shared parts


@pytest.mark.parametrize("share_scheduler", [True, False])
@exact_first
def test_a_pipeline_that_shares_parts_is_not_guided(two, mode, share_scheduler):
    first, second = two(share_scheduler)
    plain = generate(first)
    with Guidance(brightness, mode=mode, cap=1.0).attach(first):
        assert generate(second).equal(plain)
        guided = generate(first)
        assert not guided.equal(plain)
        assert generate(second).equal(plain)
    with Guidance(brightness, mode=mode, cap=1.0).attach(second):
        assert generate(first).equal(plain)
        assert generate(second).equal(guided)
    untouched(first, second)


@pytest.mark.parametrize("share_scheduler", [True, False])
def test_each_pipeline_has_its_own_guidance(two, share_scheduler):
    first, second = two(share_scheduler)
    one, other = Guidance(brightness, mode="exact"), Guidance(brightness, scale=-1.0)
    expected = []
    for guidance, pipe in ((one, first), (other, second)):
        with guidance.attach(pipe):
            expected.append(generate(pipe))
    with one.attach(first), other.attach(second):
        assert generate(first).equal(expected[0])
        assert generate(second).equal(expected[1])
    untouched(first, second)


# ---------------------------------------------------------------- threads


@pytest.mark.slow
@exact_first
def test_threads_that_share_a_unet_do_not_disturb_each_other(two, mode):
    pipes = two(share_scheduler=False)
    plain = generate(pipes[1])
    with Guidance(brightness, mode=mode).attach(pipes[0]):
        guided = generate(pipes[0])

    start = threading.Barrier(2)

    def work(pipe, guidance):
        start.wait()
        found = []
        for _ in range(4):
            if guidance is None:
                found.append(generate(pipe))
            else:
                with guidance.attach(pipe):
                    found.append(generate(pipe))
        return found, torch.is_grad_enabled()

    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(work, pipes[0], Guidance(brightness, mode=mode)), pool.submit(work, pipes[1], None)]
        (first, first_grad), (second, second_grad) = (task.result() for task in tasks)
    assert first_grad and second_grad
    for image in first:
        torch.testing.assert_close(image, guided)
    for image in second:
        torch.testing.assert_close(image, plain)
    untouched(*pipes)


def test_a_block_may_end_in_another_thread(two):
    pipe, _ = two(share_scheduler=False)
    block = Guidance(brightness, mode="exact").attach(pipe)
    block.__enter__()
    generate(pipe)
    thread = threading.Thread(target=block.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    untouched(pipe)


# ---------------------------------------------------------------- cut off


class Stream(DiffusionPipeline):
    """A pipeline that hands out its sample at every step, before the scheduler sees the output and after."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self):
        self.scheduler.set_timesteps(4)
        x = torch.ones(1, 4, 8, 8)
        embeds = torch.ones(1, 3, 8)
        for t in self.scheduler.timesteps:
            output = self.unet(self.scheduler.scale_model_input(x, t), t, embeds).sample
            yield "output", output
            x = self.scheduler.step(output, t, x).prev_sample
            yield "sample", x


@pytest.mark.parametrize("stops", [1, 2, 3])
@exact_first
def test_a_generator_that_is_abandoned_leaves_nothing(networks, mode, stops):
    unet = networks[torch.float32]["unet"]
    pipe = Stream(unet, make_scheduler("euler"))
    plain = [x for what, x in pipe() if what == "sample"][-1]
    with Guidance(brightness, mode=mode, space="latent").attach(pipe):
        guided = [x for what, x in pipe() if what == "sample"][-1]
        assert not guided.equal(plain)
        abandoned = pipe()
        for _ in range(stops):
            next(abandoned)
        assert [x for what, x in pipe() if what == "sample"][-1].equal(guided)
    assert torch.is_grad_enabled()
    assert "step" not in vars(pipe.scheduler) and not unet._forward_pre_hooks
    assert all(p.requires_grad for p in unet.parameters())
    del abandoned
    assert [x for what, x in pipe() if what == "sample"][-1].equal(plain)


@pytest.mark.slow
@exact_first
def test_a_generator_that_holds_the_block_may_be_dropped(tiny_pipeline, mode):
    pipe = tiny_pipeline()

    def images():
        with Guidance(brightness, mode=mode).attach(pipe):
            while True:
                yield generate(pipe)

    held = images()
    next(held)
    assert "step" in vars(pipe.scheduler)
    del held
    gc.collect()
    untouched(pipe)


def test_an_attach_that_fails_leaves_the_outer_one(tiny_pipeline):
    pipe = tiny_pipeline()
    with Guidance(brightness).attach(pipe):
        guided = generate(pipe)
        with pytest.raises(ValueError, match="denoiser"):
            Guidance(brightness).attach(type("Empty", (), {"scheduler": pipe.scheduler})())
        assert generate(pipe).equal(guided)
    untouched(pipe)


ORDERS = [(2, 1, 0), (1, 0, 2), (0, 2, 1)]


@pytest.mark.parametrize("order", [(0, 1, 2), *(pytest.param(o, marks=pytest.mark.slow) for o in ORDERS)])
def test_three_blocks_end_in_any_order(tiny_pipeline, order):
    pipe = tiny_pipeline()
    plain = generate(pipe)
    guidances = [Guidance(brightness, mode=mode, cap=2.0) for mode in ("exact", "x0", "exact")]
    blocks = [guidance.attach(pipe) for guidance in guidances]
    for block in blocks:
        block.__enter__()
    for index in order:
        generate(pipe)
        blocks[index].__exit__(None, None, None)
    untouched(pipe)
    assert generate(pipe).equal(plain)


@exact_first
def test_nothing_of_a_run_is_kept_alive(mode):
    pipe, guidance = minimal_pipeline(), Guidance(brightness, space="latent", mode=mode)
    with guidance.attach(pipe):
        loop(pipe)
    held = weakref.ref(guidance)
    del guidance
    gc.collect()
    assert held() is None


# ---------------------------------------------------------------- weights that are frozen


def test_weights_are_restored_by_the_last_who_froze_them():
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    other.weight = one.weight
    one.bias.requires_grad_(False)
    first, second = freeze_parameters([one, other]), freeze_parameters([one])
    with first:
        second.__enter__()
        assert not any(p.requires_grad for p in (*one.parameters(), *other.parameters()))
    assert not one.weight.requires_grad and other.bias.requires_grad
    second.__exit__(None, None, None)
    assert one.weight.requires_grad and other.weight.requires_grad and not one.bias.requires_grad


def test_a_weight_that_was_exchanged_meanwhile_is_restored_too():
    layer = torch.nn.Linear(2, 2)
    with freeze_parameters([layer]):
        layer.weight = torch.nn.Parameter(torch.zeros(2, 2), requires_grad=False)  # as offloading does
    assert layer.weight.requires_grad


# ---------------------------------------------------------------- what is running


class Probe(DiffusionPipeline):
    """A pipeline that asks for itself, and keeps nothing."""

    def __call__(self, height=8, width=None, inner=None):
        mask = torch.ones(1)  # noqa: F841
        if inner is not None:
            return inner()
        big = torch.ones(3)
        run, alive = self.ask(), weakref.ref(big)
        del big
        return run, alive()

    def ask(self):
        return current_call()


def test_current_call_is_the_innermost_pipeline_with_its_size_and_mask():
    probe, inner = Probe(), Probe()
    assert current_call() is None
    run, _ = probe(width=16)
    assert run.pipe is probe and (run.size.height, run.size.width) == (8, 16) and run.mask.equal(torch.ones(1))
    run, _ = probe(width=16, inner=lambda: inner(height=4, width=4))
    assert run.pipe is inner and run.size.height == 4
    assert probe()[0].size is None
    (run, _), outer = probe(inner=lambda: (inner(width=2), current_call()))
    assert run.pipe is inner and outer.pipe is probe


def test_current_call_keeps_no_tensor_alive():
    assert Probe()()[1] is None
