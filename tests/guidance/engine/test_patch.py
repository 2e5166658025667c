"""A method of one object is wrapped for a while, and everything is as before afterwards."""

import doctest
import functools
import inspect
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from torch import nn

from clip_guidance.guidance.engine import patch
from clip_guidance.guidance.engine.patch import patched, wrapper_of


class Scheduler:
    def step(self, sample, eta=0.0):
        """Take a step."""
        return [sample, eta]


def noting(name):
    """A wrapper that leaves its name in what the method returns."""
    return lambda original, *args, **kwargs: [*original(*args, **kwargs), name]


def test_inside_the_method_is_wrapped_and_afterwards_it_is_the_class_s():
    scheduler, other = Scheduler(), Scheduler()
    with patched(scheduler, "step", noting("a")):
        assert scheduler.step(1, eta=2) == [1, 2, "a"]
        assert other.step(1) == [1, 0.0]
    assert scheduler.step(1) == [1, 0.0] and not vars(scheduler)


def test_name_signature_and_documentation_are_kept():
    scheduler = Scheduler()
    with patched(scheduler, "step", noting("a")), patched(scheduler, "step", noting("b")):
        assert inspect.signature(scheduler.step) == inspect.signature(Scheduler().step)
        assert (scheduler.step.__name__, scheduler.step.__doc__) == ("step", "Take a step.")


def test_a_wrapper_may_change_arguments_and_need_not_call_the_original():
    scheduler = Scheduler()
    with patched(scheduler, "step", lambda original, sample, eta=0.0: original(sample + 1, eta=eta)):
        assert scheduler.step(1) == [2, 0.0]
    with patched(scheduler, "step", lambda original, *args: None):
        assert scheduler.step(1) is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_after_an_exception_everything_is_as_before(error):
    scheduler = Scheduler()
    with pytest.raises(error), patched(scheduler, "step", noting("a")):
        raise error
    assert not vars(scheduler)


def test_a_method_of_the_instance_is_put_back_as_it_was():
    scheduler = Scheduler()
    scheduler.step = own = lambda sample: [sample, "own"]
    with patched(scheduler, "step", noting("a")):
        assert scheduler.step(1) == [1, "own", "a"]
    assert scheduler.step is own


def test_the_last_wrapper_is_the_outermost():
    scheduler = Scheduler()
    with patched(scheduler, "step", noting("a")):
        with patched(scheduler, "step", noting("b")):
            assert scheduler.step(1) == [1, 0.0, "a", "b"]
        assert scheduler.step(1) == [1, 0.0, "a"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("own", [True, False])
def test_wrappers_are_taken_off_in_any_order(order, own):
    scheduler = Scheduler()
    if own:
        scheduler.step = Scheduler().step
    before, left = dict(vars(scheduler)), list("abc")
    blocks = [patched(scheduler, "step", noting(name)) for name in left]
    for block in blocks:
        block.__enter__()
    for index in order:
        blocks[index].__exit__(None, None, None)
        left.remove("abc"[index])
        assert scheduler.step(1) == [1, 0.0, *left]
    assert vars(scheduler) == before


def test_a_wrapper_by_another_library_stays_on_top():
    scheduler = Scheduler()
    with ExitStack() as stack:
        stack.enter_context(patched(scheduler, "step", noting("a")))
        inner = scheduler.step
        scheduler.step = foreign = functools.wraps(inner)(lambda *args: [*inner(*args), "foreign"])
        assert scheduler.step(1) == [1, 0.0, "a", "foreign"]
    assert scheduler.step is foreign
    assert scheduler.step(1) == [1, 0.0, "foreign"]
    with patched(scheduler, "step", noting("b")):
        assert scheduler.step(1) == [1, 0.0, "foreign", "b"]
    assert scheduler.step is foreign


def test_a_method_may_take_its_own_wrapper_off():
    scheduler, stack = Scheduler(), ExitStack()

    def once(original, *args):
        stack.close()
        return [*original(*args), "once"]

    stack.enter_context(patched(scheduler, "step", once))
    assert scheduler.step(1) == [1, 0.0, "once"]
    assert scheduler.step(1) == [1, 0.0] and not vars(scheduler)


def test_the_forward_of_a_module_is_wrapped_too():
    network, calls = nn.Identity(), []
    with patched(network, "forward", lambda original, x: calls.append(x) or original(x)):
        assert network(3) == 3
    assert calls == [3] and "forward" not in vars(network)


def test_what_is_not_there_is_not_wrapped():
    scheduler = Scheduler()
    with pytest.raises(AttributeError, match="stop"), patched(scheduler, "stop", noting("a")):
        pass
    assert not vars(scheduler)


def test_the_outermost_wrapper_is_known_if_it_is_ours():
    scheduler, ours = Scheduler(), noting("a")
    assert wrapper_of(scheduler, "step") is None
    with patched(scheduler, "step", ours):
        assert wrapper_of(scheduler, "step") is ours
        inner = scheduler.step
        scheduler.step = functools.wraps(inner)(lambda *args: inner(*args))
        assert wrapper_of(scheduler, "step") is None


def test_a_wrapper_that_was_taken_off_below_another_library_s_is_not_found_again():
    scheduler = Scheduler()
    with patched(scheduler, "step", noting("a")):
        inner = scheduler.step
        scheduler.step = lambda *args: inner(*args)
    scheduler.step = inner  # the other library puts back what it has found
    assert scheduler.step(1) == [1, 0.0]
    assert wrapper_of(scheduler, "step") is None
    with patched(scheduler, "step", noting("b")):
        assert scheduler.step(1) == [1, 0.0, "b"]
    assert not vars(scheduler)


def test_threads_put_wrappers_on_and_take_them_off():
    scheduler, start = Scheduler(), threading.Barrier(4)

    def work(name):
        start.wait()
        for _ in range(200):
            with patched(scheduler, "step", noting(name)):
                found = scheduler.step(1)
                assert found[:2] == [1, 0.0] and found.count(name) == 1

    with ThreadPoolExecutor(4) as pool:
        for task in [pool.submit(work, name) for name in "abcd"]:
            task.result()
    assert not vars(scheduler)


def test_the_example_of_the_docstring():
    assert doctest.testmod(patch).failed == 0
