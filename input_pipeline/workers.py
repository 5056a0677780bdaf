"""Worker processes that are safe beside TensorFlow, and that end when their parent does, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_pool(
    workers: int | None = None, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes; an exception inside the block cancels what has not begun.

    They come from a fork server: TensorFlow's and JAX's threads don't survive a plain fork.

    Args:
      workers: how many; None for one per core.
      initializer: called with `initargs` once in each process, before its first task.
      initargs: sent once to each process.
    """
    context = multiprocessing.get_context("forkserver")
    start = (initializer, initargs)
    with ProcessPoolExecutor(workers or cores(), context, initializer=_start_worker, initargs=start) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent() -> None:
    """Without it a worker whose parent was killed waits for its next task for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)
