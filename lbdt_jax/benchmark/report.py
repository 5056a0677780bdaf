"""Results for people: a table, two results side by side, and a plot. See `benchmark` for what a result holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from PIL import Image

from input_pipeline.errors import UserError
from lbdt_jax.chart import Panel, Point, line_chart

Row = dict[str, Any]

#: Of a result, what may explain that another one is faster.
FACTS = ("jax", "device", "environment", "config")

COLUMNS = (
    f"{'':14} {'batch':>6} {'sentences':>9} {'ms (quartiles)':>25} {'samples/s':>10} {'TFLOP/s':>8} {'ceiling':>8} "
    f"{'GB':>6} {'compiled in':>11} {'of one':>8}"
)


def describe(result: Row) -> str:
    """What was measured, on what, in two lines."""
    device, config, ceiling = result["device"], result["config"], result["ceiling"]
    model = config["model"]
    return (
        f"LBDT-{model['transfer_layers']}, ResNet-{model['resnet_depth']}, {model['dtype']}, "
        f"{config['image_size'][0]}x{config['image_size'][1]}; {device['count']} x {device['kind']}, "
        f"{device['cores']} cores, JAX {result['jax']}\n"
        f"Ceiling, matrix products: {', '.join(f'{dtype} {rate:.2f} TFLOP/s' for dtype, rate in ceiling.items())}"
    )


def table_line(row: Row) -> str:
    """A row of the table under COLUMNS; "of one" is its time relative to that for one sentence on as many frames."""
    line = f"{row['program']:14} {row['batch_size']:6} {row['sentences_per_frame']:9} "
    if "not_measured" in row:
        return f"{line} not measured: {' '.join(row['not_measured'].split())}"
    lower, median, upper = (1000 * row["seconds"][name] for name in ("lower_quartile", "median", "upper_quartile"))
    line += f"{f'{median:.1f} ({lower:.1f} to {upper:.1f})':>25} {row['samples_per_second']:10.1f}"
    if "flop" not in row:
        return f"{line}   {row['samples_per_second_and_core']:.1f} for each core"
    line += f" {row['tflops_per_second']:8.3g} {row['share_of_ceiling']:8.1%} {row['memory_bytes'] / 1e9:6.2f}"
    line += f" {row['compile_seconds']:9.0f} s"
    return f"{line} {row['cost_of_one']:8.2f}" if "cost_of_one" in row else line


def load(path: Path) -> Row:
    """Reads a result. Raises UserError if the file is not there or holds something else."""
    try:
        result = json.loads(path.read_text("utf-8"))
        describe(result), [table_line(row) for row in result["rows"]]  # raise KeyError if something is missing
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} can't be read as a result of lbdt_jax.benchmark: {error!r}.") from error
    return result


def compare(first: Row, second: Row) -> str:
    """Two results side by side: first what differs between the two runs, then how many times as fast the second is."""
    facts = [
        flatten_dict(
            {"environment": "not kept"} | {name: value for name, value in result.items() if name in FACTS}, sep="."
        )
        for result in (first, second)
    ]
    lines = [
        f"{name}: {facts[0].get(name)} -> {facts[1].get(name)}"
        for name in sorted(facts[0].keys() | facts[1].keys())
        if facts[0].get(name) != facts[1].get(name)
    ]
    lines += ["" if lines else "Same device, JAX, environment and configuration.\n"]
    lines += [f"{'':14} {'batch':>6} {'sentences':>9} {'samples/s':>10} {'samples/s':>10} {'ratio':>7} {'memory':>7}"]
    rows = [{identity(row): row for row in result["rows"]} for result in (first, second)]
    for name, size, together in rows[0] | rows[1]:
        line = f"{name:14} {size:6} {together:9} "
        row, other = (of_one.get((name, size, together), {"not_measured": "no such row"}) for of_one in rows)
        missing = [which for which, either in (("first", row), ("second", other)) if "not_measured" in either]
        if missing:
            lines.append(f"{line} not measured in the {' and the '.join(missing)}")
            continue
        line += f"{row['samples_per_second']:10.1f} {other['samples_per_second']:10.1f} "
        line += f"{other['samples_per_second'] / row['samples_per_second']:7.2f}"
        if "memory_bytes" in row:
            line += f" {other['memory_bytes'] / row['memory_bytes']:7.2f}"
        spreads = [(r["seconds"]["lower_quartile"], r["seconds"]["upper_quartile"]) for r in (row, other)]
        overlap = max(low for low, _ in spreads) <= min(high for _, high in spreads)
        lines.append(line + ("  within the spread" if overlap else ""))
    return "\n".join(lines)


def identity(row: Row) -> tuple[str, int, int]:
    """What tells a row from the others of its result."""
    return row["program"], row["batch_size"], row["sentences_per_frame"]


def chart(result: Row) -> Image.Image | None:
    """Throughput against batch size and against sentences per frame; None if there is none to show.

    The second panel has the forward pass on as many frames as the first batch size.
    """
    measured = [row for row in result["rows"] if "not_measured" not in row]
    by_size: dict[str, list[Point]] = {"forward": [], "training step": []}
    by_sentences: list[Point] = []
    asked = [row for row in measured if row["program"] == "forward" and row["sentences_per_frame"] > 1]
    frames = {row["batch_size"] // row["sentences_per_frame"] for row in asked}
    for row in measured:
        size, together = row["batch_size"], row["sentences_per_frame"]
        low, high = (size / row["seconds"][name] for name in ("upper_quartile", "lower_quartile"))
        if row["program"] == "training step" or (row["program"], together) == ("forward", 1):
            by_size[row["program"]].append(Point(size, row["samples_per_second"], low, high))
        if row["program"] == "forward" and size in (together * number for number in frames):
            by_sentences.append(Point(together, row["samples_per_second"], low, high))
    by_size = {program: points for program, points in by_size.items() if points}
    panels = [Panel("Samples per second", "samples at once", by_size)] if by_size else []
    if by_sentences:
        across = f"sentences per frame, {min(frames)} frames at once"
        panels.append(Panel("Sentences answered per second", across, {"forward": by_sentences}))
    title = describe(result).splitlines()[0]
    return line_chart(title, panels) if panels else None
