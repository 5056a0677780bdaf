"""Scores of referring segmentation in two protocols that are never mixed: "paper" and "standard".

Each metric is a state: `PaperScores()` is the empty state, `add` scores one sample, `merge` combines two states (of
processes or groups) into a new one, and `compute` returns the scores. States are small and can be pickled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lbdt_jax.metrics.boundary import boundary_accuracy, region_similarity
from lbdt_jax.metrics.davis import MAX_PROPOSALS, MatchedScores, merge_objects
from lbdt_jax.metrics.paper import PaperScores, resize_as_published
from lbdt_jax.metrics.standard import StandardScores, foreground_score, resize_logits

__all__ = [
    "MAX_PROPOSALS",
    "MatchedScores",
    "PaperScores",
    "StandardScores",
    "boundary_accuracy",
    "resize_as_published",
    "flat_scores",
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
    "all_expressions": "MeViS over all expressions, those without a target included (percent)",
    "gres": "GRES: original resolution; a right empty prediction counts 1, a wrong one 0 (percent)",
}
_COLUMNS = {
    "coco_map": "COCO mAP",
    **{f"precision@0.{tenth}": f"P@.{tenth}" for tenth in range(5, 10)},
    "mean_precision": "mean P",
    "giou": "gIoU",
    "ciou": "cIoU",
    "overall_iou": "overall IoU",
    "mean_iou": "mean IoU",
    "f1": "pixel F1",
    "j": "J",
    "f": "F",
    "j_and_f": "J&F",
    "n_acc": "N-acc.",
    "t_acc": "T-acc.",
    "final": "final",
}


def format_table(groups: Mapping[str, Mapping[str, Any]], published: Iterable[tuple[str, str, float]] = ()) -> str:
    """Formats scores as text, one table per protocol.

    Args:
      groups: name of a group of samples ("all", then each tier) -> {"samples": their number, "paper": the result of
        `PaperScores.compute`, "standard": that of `StandardScores.compute` or `MatchedScores.compute`,
        and the other keys of PROTOCOLS: their measures}. Missing protocols and measures are left out.
      published: (protocol, measure, score) to print below the first group of that protocol, with the differences.

    Returns:
      Lines of at most 120 characters, for group names of up to 14: a row per group, a column per measure, in percent.
      Empty if no group has scores.
    """
    published = list(published)
    width = max(map(len, [*groups, *(["difference"] if published else [])]), default=0)
    lines = []
    for protocol, title in PROTOCOLS.items():
        scored = {name: group for name, group in groups.items() if protocol in group}
        if not scored:
            continue
        rows = [(name, f"{group['samples']}", _percent(group[protocol])) for name, group in scored.items()]
        ours = next(iter(scored.values()))[protocol]
        theirs = {measure: score for its_protocol, measure, score in published if its_protocol == protocol}
        if theirs:
            differences = {measure: ours[measure] - score for measure, score in theirs.items() if measure in ours}
            rows[1:1] = [("published", "", _percent(theirs)), ("difference", "", _percent(differences, "+"))]
        headers = {m: header.rjust(5) for m, header in _COLUMNS.items() if any(m in scores for _, _, scores in rows)}
        lines += ["", title, "  ".join([" " * width, "samples", *headers.values()])]
        for name, samples, scores in rows:
            cells = [scores.get(measure, "").rjust(len(header)) for measure, header in headers.items()]
            lines.append("  ".join([name.ljust(width), samples.rjust(7), *cells]).rstrip())
    return "\n".join(lines[1:])


def _percent(scores: Mapping[str, float], sign: str = "") -> dict[str, str]:
    return {measure: f"{100 * score:{sign}.1f}" for measure, score in scores.items()}


def flat_scores(scores: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(protocol, measure, score) of all scores of a split or a group."""
    for protocol in PROTOCOLS:
        measures = scores.get(protocol)
        for measure, value in measures.items() if isinstance(measures, Mapping) else ():
            if isinstance(value, (int, float)):
                yield protocol, measure, value
