"""Results as tables and plots, and their comparison; see `measure.benchmark` for what a result holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flax.traverse_util import flatten_dict

from input_pipeline.errors import UserError
from input_pipeline.files import read_limited
from lbdt_jax.benchmark.timing import Row
from lbdt_jax.config import encoder_name
from lbdt_jax.visualization.overlays import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Parts of a result that may explain a difference in speed.
FACTS = ("jax", "topology", "device", "environment", "config")

_COLORS = [[channel / 255 for channel in PALETTE[index]] for index in (6, 5)]  # blue and vermilion

COLUMNS = (
    f"{'':14} {'batch':>6} {'sentences':>9} {'ms (quartiles)':>25} {'samples/s':>10} {'TFLOP/s':>8} {'ceiling':>8} "
    f"{'GB':>6} {'compiled in':>11} {'of one':>8}"
)


def describe(result: Row) -> str:
    """Model, device and ceiling, in two lines."""
    device, config, ceiling = result["device"], result["config"], result["ceiling"]
    model = config["model"]
    return (
        f"LBDT-{model['transfer_layers']}, {encoder_name(model)}, {model['dtype']}, "
        f"{config['image_size'][0]}x{config['image_size'][1]}; {device['count']} x {device['kind']}, "
        f"{device['cores']} cores, JAX {result['jax']}\n"
        f"Ceiling, matrix products: {', '.join(f'{dtype} {rate:.2f} TFLOP/s' for dtype, rate in ceiling.items())}"
    )


def table_line(row: Row) -> str:
    """A line of the table under COLUMNS; "of one" is "cost_of_one"."""
    line = f"{row['program']:14} {row['batch_size']:6} {row['sentences_per_frame']:9} "
    if "not_measured" in row:
        return f"{line} not measured: {' '.join(row['not_measured'].split())}"
    lower, median, upper = (1000 * row["seconds"][name] for name in ("lower_quartile", "median", "upper_quartile"))
    spread = f"({lower:.1f} to {upper:.1f})" if row["seconds"]["timings"] else "(estimated)"
    line += f"{f'{median:.1f} {spread}':>25} {row['samples_per_second']:10.1f}"
    if "flop" not in row:
        return f"{line}   {row['samples_per_second_and_core']:.1f} for each core"
    line += f" {row['tflops_per_second']:8.3g} {row['share_of_ceiling']:8.1%} {row['memory_bytes'] / 1e9:6.2f}"
    line += f" {row['compile_seconds']:9.0f} s"
    return f"{line} {row['cost_of_one']:8.2f}" if "cost_of_one" in row else line


#: Limit for a result; a row has 300 bytes.
MAX_BYTES = 2**24


def load(path: Path) -> Row:
    """Reads a result. Raises UserError if the file is missing or is not a result."""
    try:
        result = json.loads(read_limited(path, MAX_BYTES))
        describe(result), [table_line(row) for row in result["rows"]]  # raise KeyError if a field is missing
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} can't be read as a result of lbdt_jax.benchmark: {error!r}.") from error
    return result


def compare(first: Row, second: Row) -> str:
    """What differs between two runs, then a table with both speeds and the second's relative to the first's."""
    differences = _differences(first, second)
    lines = [*differences, ""] if differences else ["Same device, JAX, environment and configuration.\n"]
    lines += [f"{'':14} {'batch':>6} {'sentences':>9} {'samples/s':>10} {'samples/s':>10} {'ratio':>7} {'memory':>7}"]
    first_rows, second_rows = ({identity(row): row for row in result["rows"]} for result in (first, second))
    no_row = {"not_measured": "no such row"}
    for key in first_rows | second_rows:
        program, size, sentences = key
        line = _compare_rows(first_rows.get(key, no_row), second_rows.get(key, no_row))
        lines.append(f"{program:14} {size:6} {sentences:9} {line}")
    return "\n".join(lines)


def identity(row: Row) -> tuple[str, int, int]:
    """The fields that identify a row within its result."""
    return row["program"], row["batch_size"], row["sentences_per_frame"]


def _differences(first: Row, second: Row) -> list[str]:
    """A line for each of FACTS that differs between two results."""
    facts = [
        flatten_dict({"environment": "not kept"} | {name: result[name] for name in FACTS if name in result}, sep=".")
        for result in (first, second)
    ]
    return [
        f"{name}: {facts[0].get(name)} -> {facts[1].get(name)}"
        for name in sorted(facts[0].keys() | facts[1].keys())
        if facts[0].get(name) != facts[1].get(name)
    ]


def _compare_rows(first: Row, second: Row) -> str:
    """Both speeds, their ratio and that of the memory; or in which result the row is missing."""
    missing = [name for name, row in (("first", first), ("second", second)) if "not_measured" in row]
    if missing:
        return f"not measured in the {' and the '.join(missing)}"
    line = f"{first['samples_per_second']:10.1f} {second['samples_per_second']:10.1f} "
    line += f"{second['samples_per_second'] / first['samples_per_second']:7.2f}"
    if "memory_bytes" in first:
        line += f" {second['memory_bytes'] / first['memory_bytes']:7.2f}"
    quartiles = [(row["seconds"]["lower_quartile"], row["seconds"]["upper_quartile"]) for row in (first, second)]
    overlap = max(lower for lower, _ in quartiles) <= min(upper for _, upper in quartiles)
    return line + ("  within the spread" if overlap else "")


# -- Plot


def plot(result: Row) -> Figure | None:
    """Plots throughput by batch size and by sentences per frame, with quartiles; None if nothing was measured.

    The second panel shows the forward pass on as many frames as the first batch size.
    """
    # Imported here: it takes most of a second, and only a plot needs it.
    from matplotlib.figure import Figure

    measured = [row for row in result["rows"] if "not_measured" not in row]
    forward = [row for row in measured if row["program"] == "forward"]
    one_sentence = [row for row in forward if row["sentences_per_frame"] == 1]
    training = [row for row in measured if row["program"] == "training step"]
    frames = {_frames(row) for row in forward if row["sentences_per_frame"] > 1}
    panels = []
    if one_sentence or training:
        lines = {"forward": one_sentence, "training step": training}
        panels.append(("Samples per second", "batch size", "batch_size", lines))
    if frames:
        xlabel = f"sentences per frame, {min(frames)} frames per batch"
        same_frames = [row for row in forward if _frames(row) in frames]
        panels.append(("Masks per second", xlabel, "sentences_per_frame", {"forward": same_frames}))
    if not panels:
        return None
    figure = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    figure.suptitle(describe(result).splitlines()[0], x=0.02, ha="left", fontsize="small")
    for axes, (title, xlabel, field, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        axes.set_title(title, loc="left")
        axes.set_xlabel(xlabel)
        _plot_throughput(axes, field, lines)
    return figure


def _plot_throughput(axes: Axes, field: str, lines: Mapping[str, Sequence[Row]]) -> None:
    """A line of samples per second for each program, over the measured values of a field at equal distances."""
    values = sorted({row[field] for rows in lines.values() for row in rows})
    for (program, rows), color in zip(lines.items(), _COLORS, strict=False):
        if not rows:
            continue
        positions = [values.index(row[field]) for row in rows]
        median, slow, fast = (
            np.array([row["batch_size"] / row["seconds"][name] for row in rows])
            for name in ("median", "upper_quartile", "lower_quartile")
        )
        axes.errorbar(
            positions, median, (median - slow, fast - median), color=color, marker="o", capsize=4, label=program
        )
    axes.set_xticks(range(len(values)), [str(value) for value in values])
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _frames(row: Row) -> int:
    return row["batch_size"] // row["sentences_per_frame"]
