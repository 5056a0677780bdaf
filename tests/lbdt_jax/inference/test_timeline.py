"""Time stamps become times that start at 0 and increase (lbdt_jax/inference/timeline.py)."""

from __future__ import annotations

import pytest

from lbdt_jax.inference.timeline import Timeline


@pytest.mark.parametrize(
    ("stamps", "times", "jumps"),
    [
        ([0, 10, 20], [0, 10, 20], 0),
        ([-20, -10, 0], [0, 10, 20], 0),
        ([90_000, 90_010, 90_070], [0, 10, 70], 0),  # a changing rate
        ([None, None, None], [0, 10, 20], 0),
        ([5, None, 25], [0, 10, 20], 0),
        ([0, 10, 10, 20], [0, 10, 11, 20], 0),  # twice the same
        ([0, 10, 20, 30, 40, 0, 10, 20], [0, 10, 20, 30, 40, 50, 60, 70], 1),  # begins anew
        ([0, 10, 900, 910, 4, 14], [0, 10, 20, 30, 40, 50], 2),
    ],
)
def test_times_increase(stamps: list[int | None], times: list[int], jumps: int) -> None:
    timeline = Timeline(step=10, longest_gap=100)
    assert [timeline.place(stamp) for stamp in stamps] == times
    assert timeline.jumps == jumps and timeline.end == times[-1] + 10


@pytest.mark.parametrize(("first", "start"), [(-5, 0), (0, 0), (7, 7), (70, 0)])
def test_late_start(first: int, start: int) -> None:
    timeline = Timeline(step=10, longest_gap=100, latest_start=20)
    assert [timeline.place(first), timeline.place(first + 10)] == [start, start + 10] and timeline.start == start


def test_long_frames_and_missing_ones_are_no_jumps() -> None:
    timeline = Timeline(step=10, longest_gap=100)
    assert [timeline.place(0, 500), timeline.place(500), timeline.place(900, gap=True)] == [0, 500, 900]
    assert timeline.jumps == 0
