"""Line charts for people, drawn as the pictures of lbdt_jax/render.py are. Pillow only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from lbdt_jax.visualization.render import INK, PALETTE, PAPER, QUIET, RULE

_COLORS = (PALETTE[6], PALETTE[5], PALETTE[2])  # those that stand out on white: blue, vermilion, bluish green
_WIDTH, _HEIGHT = 480, 300  # pixels of a panel's axes
_LEFT, _TOP, _BOTTOM, _RIGHT = 84, 84, 64, 36  # pixels around them


class Point(NamedTuple):
    """One measurement: its place on the horizontal axis, its value, and the ends of its error bar."""

    place: int
    value: float
    low: float
    high: float


class Panel(NamedTuple):
    """One pair of axes; `lines` has the points of each line by its name, at most three lines."""

    heading: str
    across: str
    lines: dict[str, Sequence[Point]]


def line_chart(title: str, panels: Sequence[Panel]) -> Image.Image:
    """Panels side by side under a title. Every measured place has the same distance to the next; values begin at 0.

    Raises:
      ValueError: there is no panel, or one without a point.
    """
    if not panels or not all(any(panel.lines.values()) for panel in panels):
        raise ValueError(f'the chart "{title}" has nothing to show')
    pitch = _LEFT + _WIDTH + _RIGHT
    chart = Image.new("RGB", (pitch * len(panels), 56 + _TOP + _HEIGHT + _BOTTOM), PAPER)
    draw = ImageDraw.Draw(chart)
    _write(draw, (36, 36), title, 22, INK, "lm")
    for number, panel in enumerate(panels):
        _draw_panel(draw, (number * pitch + _LEFT, 56 + _TOP), panel)
    return chart


def round_step(highest: float) -> float:
    """The step, 1, 2 or 5 times a power of ten, of which `highest` > 0 has at most five and at least two."""
    power = 10 ** math.floor(math.log10(highest / 5))
    return next(factor * power for factor in (1, 2, 5, 10) if 5 * factor * power >= highest * (1 - 1e-9))


def _draw_panel(draw: ImageDraw.ImageDraw, corner: tuple[int, int], panel: Panel) -> None:
    left, top = corner
    points = [point for line in panel.lines.values() for point in line]
    places = sorted({point.place for point in points})
    step = round_step(max(point.high for point in points))
    highest = step * math.ceil(max(point.high for point in points) / step * (1 - 1e-9))

    def at(place: int, value: float) -> tuple[float, float]:
        across = (places.index(place) + 0.5) / len(places)
        return left + across * _WIDTH, top + (1 - value / highest) * _HEIGHT

    _write(draw, (left, top - 54), panel.heading, 16, INK, "lm")
    for number in range(round(highest / step) + 1):
        _, height = at(places[0], number * step)
        draw.line((left, height, left + _WIDTH, height), QUIET if number == 0 else RULE)
        _write(draw, (left - 8, height), f"{number * step:,.6g}", 13, QUIET, "rm")
    for place in places:
        _write(draw, (at(place, 0)[0], top + _HEIGHT + 16), str(place), 13, QUIET, "mm")
    _write(draw, (left + _WIDTH / 2, top + _HEIGHT + 40), panel.across, 14, QUIET, "mm")

    legend = left
    for (name, line), color in zip(panel.lines.items(), _COLORS, strict=False):
        draw.line((legend, top - 26, legend + 20, top - 26), color, 3)
        _write(draw, (legend + 26, top - 26), name, 14, INK, "lm")
        legend += 26 + round(ImageFont.load_default(14).getlength(name)) + 24
        draw.line([at(point.place, point.value) for point in line], color, 3, joint="curve")
        for point in line:
            across, height = at(point.place, point.value)
            draw.line((at(point.place, point.low), at(point.place, point.high)), color, 1)
            for end in (point.low, point.high):
                bar = at(point.place, end)[1]
                draw.line((across - 6, bar, across + 6, bar), color, 1)
            draw.ellipse((across - 4, height - 4, across + 4, height + 4), color)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int,
    color: tuple[int, int, int],
    anchor: str,
) -> None:
    draw.text(place, text, color, ImageFont.load_default(size), anchor)
