"""One pipeline or one UNet in several threads and tasks: each run takes its own guidance, or is refused."""

import asyncio
import functools
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from helpers.factories import assemble, generate, make_scheduler
from helpers.minimal_pipeline import brightness, exact_first, loop, minimal_pipeline, modes
from helpers.modular_runs import SCALE, redness, run
from helpers.pipelines import modular

from clip_guidance.guidance import CLIPGuidance, Guidance

PROMPTS = ["dog", "tree", "house", "star", "moon", "ship", "bird", "fish"]


@pytest.fixture
def pipeline(networks):
    """() -> a pipeline of the shared networks with a scheduler of its own, whose state is that of one run."""
    return lambda: assemble(**networks[torch.float32], scheduler=make_scheduler("euler"))


@pytest.fixture
def guided(clip):
    """(prompt, mode) -> a guidance, strong enough that no two images are alike."""
    return lambda prompt, mode="x0": CLIPGuidance(clip, prompt, 20.0, mode=mode, cutouts=2)


def alone(pipe, guidance):
    with guidance.attach(pipe):
        return generate(pipe)


def in_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


# ---------------------------------------------------------------- whose guidance a run takes


def check_threads(pipes, guided, mode, runs):
    """Attach in every thread, run where the pipe is shared one after the other, and compare to the bit."""
    expected = [alone(pipes[0], guided(prompt, mode)) for prompt in PROMPTS[: len(pipes)]]
    assert len({tuple(image.flatten().tolist()) for image in expected}) == len(pipes)
    turn = threading.Lock() if pipes[0] is pipes[1] else nullcontext()
    start = threading.Barrier(len(pipes))

    def work(index):
        torch.set_num_threads(1)
        start.wait(20)
        same = []
        for _ in range(runs):
            with guided(PROMPTS[index], mode).attach(pipes[index]), turn:
                same.append(generate(pipes[index]).equal(expected[index]))
        return same

    with ThreadPoolExecutor(len(pipes)) as pool:
        assert all(all(same) for same in pool.map(work, range(len(pipes))))
    assert "step" not in vars(pipes[0].scheduler) and not pipes[0].unet._forward_pre_hooks


@pytest.mark.parametrize("shared", [pytest.param("pipe", marks=pytest.mark.slow), "unet"])
@exact_first
def test_each_thread_is_steered_by_its_own_guidance(pipeline, guided, eager_threads, mode, shared):
    check_threads([pipeline()] * 3 if shared == "pipe" else [pipeline() for _ in range(3)], guided, mode, runs=2)


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["pipe", "unet"])
@modes
def test_eight_threads_of_forty_runs(pipeline, guided, eager_threads, mode, shared):
    check_threads([pipeline()] * 8 if shared == "pipe" else [pipeline() for _ in range(8)], guided, mode, runs=40)


@modes
def test_what_is_attached_here_may_run_there(pipeline, guided, mode):
    pipe = pipeline()
    expected = alone(pipe, guided("dog", mode))
    with guided("dog", mode).attach(pipe):
        assert in_thread(lambda: generate(pipe)).equal(expected)


def test_what_another_thread_attached_does_not_add_up(pipeline, guided):
    pipe = pipeline()
    expected = alone(pipe, guided("tree"))
    with guided("dog").attach(pipe):
        assert in_thread(lambda: alone(pipe, guided("tree"))).equal(expected)


def test_a_run_that_could_take_the_guidance_of_either_thread_is_refused(pipeline, guided):
    pipe, go_on = pipeline(), threading.Event()
    attached = threading.Event()

    def hold():
        with guided("tree").attach(pipe):
            attached.set()
            go_on.wait(20)
            generate(pipe)

    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(hold)
        attached.wait(20)
        message = "attached no guidance to the pipeline that it runs, and 2 other threads or tasks did"
        with guided("dog").attach(pipe):
            with pytest.raises(RuntimeError, match=message):
                pool.submit(generate, pipe).result()
            generate(pipe)
        go_on.set()
        other.result()


@pytest.mark.parametrize("place", ["loop", "thread"])
def test_each_task_is_steered_by_its_own_guidance(pipeline, guided, place):
    pipe = pipeline()
    expected = [alone(pipe, guided(prompt)) for prompt in PROMPTS[:2]]

    async def request(prompt, turn):
        with guided(prompt).attach(pipe):
            await asyncio.sleep(0)  # the other task attaches
            async with turn:
                return generate(pipe) if place == "loop" else await asyncio.to_thread(generate, pipe)

    async def serve():
        turn = asyncio.Lock()
        return await asyncio.gather(*(request(prompt, turn) for prompt in PROMPTS[:2]))

    assert [image.equal(other) for image, other in zip(asyncio.run(serve()), expected, strict=True)] == [True, True]


def test_one_guidance_in_two_threads_draws_its_crops_for_each(pipeline, guided, eager_threads):
    guidance, pipes = guided("dog"), [pipeline(), pipeline()]
    expected = alone(pipes[0], guidance)
    with ThreadPoolExecutor(2) as pool:
        assert all(image.equal(expected) for image in pool.map(lambda pipe: alone(pipe, guidance), pipes))


# ---------------------------------------------------------------- two runs of one scheduler at once


def held_up(pipe, reached, go_on, guidance=None):
    """A run that waits after its first step."""

    def wait(pipe, step, timestep, tensors):
        if step == 0:
            reached.set()
            go_on.wait(20)
        return tensors

    with guidance.attach(pipe) if guidance else nullcontext():
        return generate(pipe, callback_on_step_end=wait)


@pytest.mark.parametrize("other", ["the same pipe", "a pipe with its scheduler"])
def test_a_second_run_at_once_is_refused_and_the_first_is_right(pipeline, networks, guided, other):
    pipe, reached, go_on = pipeline(), threading.Event(), threading.Event()
    second = pipe if other == "the same pipe" else assemble(**networks[torch.float32], scheduler=pipe.scheduler)
    expected = alone(pipe, guided("dog", "exact"))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(held_up, pipe, reached, go_on, guided("dog", "exact"))
        reached.wait(20)
        with pytest.raises(RuntimeError, match="another thread's run .* EulerDiscreteScheduler .*from_pipe") as caught:
            alone(second, guided("tree"))
        with pytest.raises(RuntimeError, match="another thread's run"):
            generate(second)
        go_on.set()
        assert first.result().equal(expected)
    assert len(str(caught.value)) <= 300
    own = type(pipe).from_pipe(pipe)  # the cure that the message names
    own.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    assert alone(own, guided("dog", "exact")).equal(expected)


@pytest.mark.parametrize("overtaken", [False, True])
def test_a_run_that_began_before_another_thread_attached_stays_unguided_or_is_refused(pipeline, guided, overtaken):
    pipe, reached, go_on = pipeline(), threading.Event(), threading.Event()
    plain, expected = generate(pipe), alone(pipe, guided("dog"))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(held_up, pipe, reached, go_on)
        reached.wait(20)
        with guided("dog").attach(pipe):
            if overtaken:
                assert generate(pipe).equal(expected)
            go_on.set()
            if overtaken:
                with pytest.raises(RuntimeError, match="another thread began a run with this EulerDiscreteScheduler"):
                    first.result()
            else:
                assert first.result().equal(plain)
            assert generate(pipe).equal(expected)


def test_a_loop_of_ones_own_that_is_overtaken_is_refused():
    pipe = minimal_pipeline("euler")
    expected = loop(pipe)
    with Guidance(brightness, space="latent").attach(pipe):
        guided = loop(pipe)
        pipe.scheduler.set_timesteps(4)
        assert in_thread(lambda: loop(pipe)).equal(guided)
        with pytest.raises(RuntimeError, match="another thread began a run with this EulerDiscreteScheduler before"):
            pipe.scheduler.scale_model_input(torch.ones(1), pipe.scheduler.timesteps[0])
        assert loop(pipe).equal(guided)
    assert loop(pipe).equal(expected) and not guided.equal(expected)


@modes
def test_a_guider_serves_one_thread_at_a_time(mode):
    pipe, inputs = modular.stable_diffusion3()
    guidance = Guidance(redness, SCALE, mode=mode)
    expected = run(pipe, inputs, guider=guidance)
    reached, go_on, step = threading.Event(), threading.Event(), type(pipe.scheduler).step

    @functools.wraps(step)  # pipelines read its signature
    def wait(self, *args, **kwargs):
        if not reached.is_set():
            reached.set()
            go_on.wait(20)
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(type(pipe.scheduler), "step", wait)
        first = pool.submit(run, pipe, inputs)
        reached.wait(20)
        with pytest.raises(RuntimeError, match="in the middle of another thread's run"):
            pipe(**inputs)
        go_on.set()
        with pytest.raises(RuntimeError, match="timesteps of this run's .* were set again in the middle of it"):
            first.result()
    assert run(pipe, inputs).equal(expected)


# ---------------------------------------------------------------- one network


def test_a_hook_may_be_taken_off_under_a_running_forward(pipeline, guided):
    """torch then passes it no keywords."""
    guided_pipe, other = pipeline(), pipeline()
    plain, block, left = generate(other), guided("dog", "exact").attach(guided_pipe), []

    def leave(*args):  # runs before the hook of the guidance, in the same forward
        if not left:
            left.append(block.__exit__(None, None, None))

    handle = other.unet.register_forward_pre_hook(leave)
    block.__enter__()
    image = generate(other)
    handle.remove()
    assert left and image.equal(plain)


@pytest.mark.slow
@modes
def test_three_hundred_runs_take_no_more_memory(pipeline, guided, mode):
    import resource

    pipe = pipeline()

    def objects(runs):
        for _ in range(runs):
            with guided("dog", mode).attach(pipe):
                generate(pipe)
        gc.collect()
        return len(gc.get_objects()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    (count, peak), (later, later_peak) = objects(30), objects(270)
    assert later - count < 300  # less than an object a run
    assert later_peak - peak < 32 * 1024  # KiB


# ---------------------------------------------------------------- one tokenizer


def test_threads_that_share_a_tokenizer_get_the_padding_that_they_asked_for(pipeline, eager_threads):
    """transformers sets it on the tokenizer before it encodes, so that one thread may get another's."""
    pipe, kinds = pipeline(), ("longest", "max_length")

    def lengths(index):
        return {len(pipe.tokenizer("cat", padding=kinds[index % 2]).input_ids) for _ in range(200)}

    with Guidance(brightness, space="latent").attach(pipe), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lengths, range(4)))
    assert found == [{len(pipe.tokenizer("cat").input_ids)}, {pipe.tokenizer.model_max_length}] * 2
    assert "_encode_plus" not in vars(pipe.tokenizer)
