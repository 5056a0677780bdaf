"""Scores of referring segmentation in two protocols that are never mixed: "paper" and "standard".

Both are kept as states: empty at first, `add` takes one sample, `merge` unites those of several processes or groups,
`compute` gives the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lbdt_jax.metrics.boundary import boundary_accuracy, region_similarity
from lbdt_jax.metrics.davis import MAX_PROPOSALS, MatchedScores, merge_objects
from lbdt_jax.metrics.paper import PaperScores, enlarge_as_published
from lbdt_jax.metrics.standard import StandardScores, foreground_score, resize_logits

__all__ = [
    "MAX_PROPOSALS",
    "MatchedScores",
    "PaperScores",
    "StandardScores",
    "boundary_accuracy",
    "enlarge_as_published",
    "foreground_score",
    "format_table",
    "merge_objects",
    "region_similarity",
    "resize_logits",
]

PROTOCOLS = {
    "paper": "Protocol \"paper\": as in LBDT's tables, through the model's size (percent)",
    "standard": 'Protocol "standard": original resolution, untouched masks (percent)',
    "per_expression": "Per expression: J and F of every sentence by itself, as newer papers report (percent)",
}
_COLUMNS = {
    "coco_map": "COCO mAP",
    **{f"precision@0.{tenth}": f"P@.{tenth}" for tenth in range(5, 10)},
    "mean_precision": "mean P",
    "overall_iou": "overall IoU",
    "mean_iou": "mean IoU",
    "f1": "pixel F1",
    "j": "J",
    "f": "F",
    "j_and_f": "J&F",
}


def format_table(groups: Mapping[str, Mapping[str, Any]], published: Iterable[tuple[str, str, float]] = ()) -> str:
    """The scores as text for the screen, one table per protocol.

    Args:
      groups: name of a group of samples ("all", then each tier) -> {"samples": how many, "paper": what
        `PaperScores.compute` gives, "standard": what `StandardScores.compute` or `MatchedScores.compute` gives,
        "per_expression": {"j", "f", "j_and_f"}}. A group stands in the tables of the protocols that it has, with the
        measures that it has and the tables know.
      published: (protocol, measure, score) to print below the first group of that protocol's table, with what this
        group is above them.

    Returns:
      Lines of at most 120 characters, for names of up to 14: a row per group, a column per measure, in percent. Empty
      if no group has scores.
    """
    published = list(published)
    label = max(map(len, [*groups, *(["difference"] if published else [])]), default=0)
    lines = []
    for protocol, title in PROTOCOLS.items():
        rows = [(name, f"{group['samples']}", group[protocol]) for name, group in groups.items() if protocol in group]
        if not rows:
            continue
        ours, theirs = rows[0][2], {measure: score for of, measure, score in published if of == protocol}
        rows = [(name, samples, _percent(scores)) for name, samples, scores in rows]
        if theirs:
            differences = {measure: ours[measure] - score for measure, score in theirs.items() if measure in ours}
            rows[1:1] = [("published", "", _percent(theirs)), ("difference", "", _percent(differences, "+"))]
        heads = {m: head.rjust(5) for m, head in _COLUMNS.items() if any(m in scores for _, _, scores in rows)}
        lines += ["", title, "  ".join([" " * label, "samples", *heads.values()])]
        for name, samples, scores in rows:
            cells = [scores.get(measure, "").rjust(len(head)) for measure, head in heads.items()]
            lines.append("  ".join([name.ljust(label), samples.rjust(7), *cells]).rstrip())
    return "\n".join(lines[1:])


def _percent(scores: Mapping[str, float], sign: str = "") -> dict[str, str]:
    return {measure: f"{100 * score:{sign}.1f}" for measure, score in scores.items()}
