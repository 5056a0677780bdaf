"""The time of a pipeline is split among its parts (lbdt_jax/inference/stopwatch.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import monotonic, sleep

from lbdt_jax.inference.stopwatch import Stopwatch


def test_time_is_counted_for_one_part_only() -> None:
    stopwatch = Stopwatch()

    def slow(items: Iterable[int]) -> Iterator[int]:
        for item in items:
            sleep(0.01)
            yield item

    started = monotonic()
    inner = stopwatch.iterate("inner", slow(range(10)))
    assert list(stopwatch.iterate("outer", slow(inner))) == list(range(10))
    total = monotonic() - started
    assert 0.1 <= stopwatch.seconds["inner"] <= total - 0.1 and stopwatch.seconds["outer"] >= 0.1
    assert sum(stopwatch.seconds.values()) <= total
