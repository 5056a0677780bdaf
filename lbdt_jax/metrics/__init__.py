"""Scores of referring segmentation in two protocols that are never mixed: "paper" and "standard".

Both are kept as states: empty at first, `add` takes one sample, `merge` unites those of several processes or groups,
`compute` gives the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from lbdt_jax.metrics.boundary import boundary_accuracy, region_similarity
from lbdt_jax.metrics.paper import PaperScores
from lbdt_jax.metrics.standard import StandardScores, foreground_score, resize_logits

__all__ = [
    "PaperScores",
    "StandardScores",
    "boundary_accuracy",
    "foreground_score",
    "format_table",
    "region_similarity",
    "resize_logits",
]

PROTOCOLS = {
    "paper": "Protocol \"paper\": as in LBDT's tables, through the model's size (percent)",
    "standard": 'Protocol "standard": original resolution, untouched masks (percent)',
}
_COLUMNS = {
    **{f"precision@0.{tenth}": f"P@.{tenth}" for tenth in range(5, 10)},
    "mean_precision": "mean P",
    "coco_map": "COCO mAP",
    "overall_iou": "overall IoU",
    "mean_iou": "mean IoU",
    "f1": "pixel F1",
    "j": "J",
    "f": "F",
    "j_and_f": "J&F",
}


def format_table(
    groups: Mapping[str, Mapping[str, Mapping[str, float]]], published: Mapping[str, float] | None = None
) -> str:
    """The scores as text for the screen, one table per protocol.

    Args:
      groups: name of a group of samples ("all", then each tier) -> {"samples": how many, "paper": what
        `PaperScores.compute` gives, "standard": what `StandardScores.compute` gives}. A protocol may be left out.
      published: scores of protocol "paper" to print below the first group, with what the first group is above them.

    Returns:
      Lines of at most 120 characters, for names of up to 14: a row per group, a column per measure, in percent.
    """
    first = next(iter(groups.values()))
    label = max(map(len, [*groups, *(["difference"] if published else [])]))
    lines = []
    for protocol, title in PROTOCOLS.items():
        if protocol not in first:
            continue
        heads = [_COLUMNS[measure].rjust(5) for measure in first[protocol]]
        lines += ["", title, "  ".join([" " * label, "samples", *heads])]
        rows = [
            (name, f"{group['samples']}", {m: f"{100 * group[protocol][m]:.1f}" for m in first[protocol]})
            for name, group in groups.items()
        ]
        if published and protocol == "paper":
            differences = {m: f"{100 * (first[protocol][m] - score):+.1f}" for m, score in published.items()}
            rows.insert(1, ("published", "", {m: f"{100 * score:.1f}" for m, score in published.items()}))
            rows.insert(2, ("difference", "", differences))
        for name, samples, scores in rows:
            cells = [scores.get(m, "").rjust(len(head)) for m, head in zip(first[protocol], heads, strict=True)]
            lines.append("  ".join([name.ljust(label), samples.rjust(7), *cells]).rstrip())
    return "\n".join(lines[1:])
