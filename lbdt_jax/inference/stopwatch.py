"""Measures how long each part of a pipeline takes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Stopwatch:
    """Seconds spent in each part of the work. Parts may be nested: every second counts for the innermost part only.

    Attributes:
      seconds: name of a part -> its seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Counts the time of a block."""
        started, counted = time.monotonic(), sum(self.seconds.values())
        try:
            yield
        finally:
            nested = sum(self.seconds.values()) - counted
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - started - nested

    def iterate(self, part: str, items: Iterable[Item]) -> Iterator[Item]:
        """Yields the items, and counts the time that it takes to make them."""
        iterator = iter(items)
        while True:
            with self.measure(part):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
