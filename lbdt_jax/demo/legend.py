"""The sentences in the colors of their masks, with their confidences, as html."""

from __future__ import annotations

import html

import numpy as np

from lbdt_jax.demo.work import Result
from lbdt_jax.visualization.overlays import color_of

_CURVE = 240, 28  # width and height of the confidences' curves, in their own units
CSS = """
.legend { display: grid; grid-template-columns: auto minmax(9rem, 1fr) minmax(4rem, 15rem) 3.2rem; gap: .45rem .8rem;
  align-items: center; font-size: 1.05rem; }
.legend .swatch { width: 1.1rem; height: 1.1rem; border-radius: 3px; }
.legend .head { font-size: .85rem; color: var(--body-text-color-subdued); }
.legend svg { width: 100%; height: 28px; display: block; }
.legend .number { font-variant-numeric: tabular-nums; text-align: right; }
"""


def draw(result: Result, index: int) -> str:
    """A row for each sentence: color, words, the curve of its confidence over the clip, and the number in a frame."""
    width, height = _CURVE
    cells = [
        f'<span></span><span class="head">In frame {index}, at {result.times[index]:.2f} s</span>'
        '<span class="head">confidence over the clip</span><span class="head number">here</span>'
    ]
    across = np.linspace(0, width, len(result.times))
    for number, sentence in enumerate(result.sentences):
        color = "rgb({}, {}, {})".format(*color_of(number))
        down = 1 + (height - 2) * (1 - result.confidence[:, number])
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, down, strict=True))
        here = result.confidence[index, number]
        cells.append(
            f'<span class="swatch" style="background: {color}"></span><span>{html.escape(sentence)}</span>'
            f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" fill="none" stroke-width="2">'
            f'<polyline points="{points}" stroke="{color}" vector-effect="non-scaling-stroke"/>'
            f'<path d="M {across[index]:.1f} 0 v {height}" stroke="currentColor" stroke-opacity=".4" '
            f'vector-effect="non-scaling-stroke"/></svg>'
            f'<span class="number">{f"{here:.2f}" if here else "nothing"}</span>'
        )
    return f'<div class="legend">{"".join(cells)}</div>'
