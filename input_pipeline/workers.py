"""Worker processes that are safe beside TensorFlow, and that end when their parent does, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_pool(workers: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes, one per core if not told; an exception inside the block cancels what has not begun.

    They come from a fork server: TensorFlow's and JAX's threads don't survive a plain fork.
    """
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(workers or cores(), context, initializer=_start_worker) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without it a worker whose parent was killed waits for its next task for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)
