"""Parallel work: threads, and a pool of processes that is safe next to TensorFlow and never outlives its parent."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Element = TypeVar("Element")
Result = TypeVar("Result")


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_threads(function: Callable[[Element], Result], elements: Iterator[Element]) -> Iterator[Result]:
    """Applies a function to each element in parallel and yields the results in order, computed a few ahead.

    Uses Python threads rather than those of tf.data: Pillow releases the GIL, and TensorFlow may hang at exit while one
    of its own threads executes Python.
    """
    count = min(32, cores() + 4)
    ahead = max(8, count + 2)
    with ThreadPoolExecutor(count) as threads:
        futures = deque(threads.submit(function, element) for element in itertools.islice(elements, ahead))
        try:
            while futures:
                result = futures.popleft().result()
                futures.extend(threads.submit(function, element) for element in itertools.islice(elements, 1))
                yield result
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def worker_pool(
    workers: int | None = None, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """A pool of worker processes. An exception inside the `with` block cancels all tasks that have not started.

    The workers are forked from a fork server, since the threads of TensorFlow and JAX do not survive a plain fork.

    Args:
      workers: number of processes; None for one per core.
      initializer: called as `initializer(*initargs)` once in each worker, before its first task.
      initargs: pickled and sent to each worker once.
    """
    context = multiprocessing.get_context("forkserver")
    start_args = (initializer, initargs)
    with ProcessPoolExecutor(workers or cores(), context, initializer=_start_worker, initargs=start_args) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _exit_with_parent() -> None:
    """Ends this worker when its parent dies; otherwise it would wait for its next task forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # runs in workers only
    parent.join()
    os._exit(1)
