"""The one way to do work in threads: ahead of its use, in order, and in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(work: Callable[[T], R], items: Iterable[T], threads: int, ahead: int) -> Iterator[R]:
    """Apply ``work`` to each item in threads and yield the results in the order of the items.

    Breaking off the iteration (or closing the iterator) cancels what has not begun and waits for what has.

    Args:
        work: Called in the threads, with one item at a time.
        items: May be endless; read in the calling thread, and only as far as the window reaches.
        threads: Number of threads; with 0 the work is done in the calling thread when its result is asked for.
        ahead: Size of the window, at least 1: how many items are under way or waiting, the one handed out included.

    Yields:
        The result of each item. An error of ``work`` is raised where the result would be yielded, and ends the
        iteration.

    Example:
        >>> from clip_guidance._threads import ordered_map
        >>> list(ordered_map(str.upper, "abc", threads=2, ahead=4))
        ['A', 'B', 'C']
    """
    if not threads:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ordered_map")
    window: deque[Future[R]] = deque()
    try:
        for item in items:
            window.append(pool.submit(work, item))
            if len(window) >= ahead:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
