"""The legend of a result as HTML: each sentence with the color and the confidence of its mask."""

from __future__ import annotations

import html

import numpy as np

from lbdt_jax.demo.work import Result
from lbdt_jax.visualization.overlays import color_of

_CURVE_SIZE = 240, 28  # (width, height) of a confidence curve in SVG units
CSS = """
.legend { display: grid; grid-template-columns: auto minmax(9rem, 1fr) minmax(4rem, 15rem) 4.4rem; gap: .45rem .8rem;
  align-items: center; font-size: 1.05rem; }
.legend .swatch { width: 1.1rem; height: 1.1rem; border-radius: 3px; }
.legend .head { font-size: .85rem; color: var(--body-text-color-subdued); }
.legend svg { width: 100%; height: 28px; display: block; }
.legend .number { font-variant-numeric: tabular-nums; text-align: right; }
"""


def render(result: Result, frame: int) -> str:
    """Renders one row per sentence: color, text, confidence curve over the clip, and confidence in one frame.

    Args:
      result: of S sentences.
      frame: index of the frame, from 0; the curves mark it.
    """
    width, height = _CURVE_SIZE
    cells = [
        f'<span></span><span class="head">Frame {frame}, {result.times[frame]:.2f} s</span>'
        '<span class="head">confidence over the clip</span><span class="head number">this frame</span>'
    ]
    x = np.linspace(0, width, len(result.times))
    for index, sentence in enumerate(result.sentences):
        color = "rgb({}, {}, {})".format(*color_of(index))
        y = 1 + (height - 2) * (1 - result.confidence[:, index])
        points = " ".join(f"{x_:.1f},{y_:.1f}" for x_, y_ in zip(x, y, strict=True))
        confidence = result.confidence[frame, index]
        cells.append(
            f'<span class="swatch" style="background: {color}"></span><span>{html.escape(sentence)}</span>'
            f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" fill="none" stroke-width="2">'
            f'<polyline points="{points}" stroke="{color}" vector-effect="non-scaling-stroke"/>'
            f'<path d="M {x[frame]:.1f} 0 v {height}" stroke="currentColor" stroke-opacity=".4" '
            f'vector-effect="non-scaling-stroke"/></svg>'
            f'<span class="number">{f"{confidence:.2f}" if confidence else "no mask"}</span>'
        )
    return f'<div class="legend">{"".join(cells)}</div>'
