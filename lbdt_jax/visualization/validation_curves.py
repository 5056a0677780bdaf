"""The curves of the validations of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbdt_jax.cli import atomic_write
from lbdt_jax.metrics import flat_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Measures in the plot, those that a dataset has; and the panel of the groups of sentences.
PLOTTED, GROUPS = ("mean_iou", "overall_iou", "mean_precision", "coco_map", "j_and_f"), "standard: mean_iou, by group"


def plot(histories: Mapping[str, Sequence[Mapping[str, Any]]], best_step: int | None, path: Path) -> None:
    """Draws the curves of validations, a row of panels for each split.

    Args:
      histories: name of a split -> its validations.
      best_step: of the best checkpoint.
      path: of the picture.
    """
    from matplotlib.figure import Figure  # here, since it takes most of a second

    rows = [(name, history, curves) for name, history in histories.items() if (curves := _curves(history))]
    if not rows:
        return
    columns = max(len(curves) for *_, curves in rows)
    figure = Figure(figsize=(5.5 * columns, 4.5 * len(rows)), layout="constrained")
    subfigures = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for subfigure, (name, history, curves) in zip(subfigures, rows, strict=True):
        last = history[-1]
        dataset = f"{last['dataset']}, " if name else ""
        title = f"Validation on {dataset}split {last['split']!r}, {last['weights']} weights"
        subfigure.suptitle(title, x=0.02, ha="left")
        best_epoch = next((entry["epoch"] for entry in history if entry["step"] == best_step), None)
        panels = subfigure.subplots(1, columns, squeeze=False)[0]
        for axes, (panel, lines) in zip(panels, curves.items(), strict=False):
            _plot_panel(axes, panel, lines, best_epoch)
        for axes in panels[len(curves) :]:
            axes.remove()
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=100)


def _curves(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Panel -> name of a curve -> (epochs, scores): a panel for each protocol, and one for groups of sentences."""
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for entry in history:
        rows = [(p, m, value) for p, m, value in flat_scores(entry["scores"]) if m in PLOTTED]
        for group, scores in entry["scores"]["groups"].items():
            rows += [(GROUPS, group, value) for p, m, value in flat_scores(scores) if f"{p}: {m}" in GROUPS]
        for panel, name, value in rows:
            epochs, values = curves.setdefault(panel, {}).setdefault(name, ([], []))
            epochs.append(entry["epoch"])
            values.append(value)
    return curves


def _plot_panel(
    axes: Axes, title: str, lines: Mapping[str, tuple[list[float], list[float]]], best_epoch: float | None
) -> None:
    """Draws name -> (epochs, scores); the best checkpoint is a vertical line."""
    for name, (epochs, values) in lines.items():
        axes.plot(epochs, values, marker="o", markersize=3, label=name)
    if best_epoch is not None:
        axes.axvline(best_epoch, color="gray", linestyle=":", label="best checkpoint")
    axes.set_title(title, loc="left")
    axes.set_xlabel("epoch")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize="small")
