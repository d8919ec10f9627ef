"""Decoding in threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

ProgressCallback = Callable[[int, int], None]
"""Called with (done, total), always from the thread that asked for the work."""

Item = TypeVar("Item")
Output = TypeVar("Output")

AHEAD = 4
"""Items in flight per thread."""


def ordered_map(
    function: Callable[[Item], Output], items: Iterable[Item], *, workers: int
) -> Iterator[Output]:
    """Yield `function(item)` in the order of the items.

    Args:
        function: called from several threads at once unless `workers` is 0.
        items: read only as far as the threads need.
        workers: threads; 0 calls the function in the calling thread.
    """
    if workers == 0:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    window: deque[Future[Output]] = deque()
    try:
        for item in items:
            window.append(pool.submit(function, item))
            if len(window) > AHEAD * workers:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
    finally:  # also when the reader stops early or is interrupted
        pool.shutdown(wait=True, cancel_futures=True)
