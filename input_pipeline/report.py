"""What is known of a data set's records without reading them: where they lie, and what was found when they were made.

Knows no TensorFlow.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from input_pipeline.errors import UserError
from input_pipeline.readers.lbdt_layout import LBDTLayout
from input_pipeline.types import Skipped

#: Of the records' layout; a new one is written beside the old.
VERSION = "2.0.0"

#: Of a split, in the report.
COUNTS = ("videos", "frame_pairs", "instances", "sentences", "without_truth")

#: What `records.write_records` keeps of a shard.
Shard = dict[str, Any]


def records_dir(data_dir: str | Path, dataset: str) -> Path:
    """Where the records of a data set lie."""
    return Path(data_dir) / dataset / VERSION


def is_prepared(data_dir: str | Path, dataset: str) -> bool:
    """Whether the records are there and whole."""
    return (records_dir(data_dir, dataset) / "dataset_info.json").exists()


def load_report(data_dir: str | Path, dataset: str) -> dict[str, Any]:
    """What was found when the records were made.

    Returns:
      {"dataset", "raw", "interval",
       "layout": "raw", or "prepared" as LBDT's released code has it
       "skipped_lines": {reason: [where, ...]}        of the annotation files
       "splits": {split: {"videos", "frame_pairs", "instances", "sentences",
                          "without_truth": sentences whose instance is not published,
                          "earlier_frames": {rule: frame pairs}, "groups": {group: sentences},
                          "sentences_per_frame_pair": {number: frame pairs},
                          "skipped": {reason: [where, ...]}}},
       "tokens": [...]}                               of all sentences, sorted

    Raises:
      UserError: there are no records yet, or the report can't be read.
    """
    if not is_prepared(data_dir, dataset):
        raise UserError(
            f"No records of {dataset} in {records_dir(data_dir, dataset)}. Make them with\n"
            f"  python -m input_pipeline.prepare --dataset={dataset} --raw=RAW_DATA --data_dir={data_dir}"
        )
    path = records_dir(data_dir, dataset) / "report.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}). Delete {path.parent} and prepare the data again.") from error


def make_report(dataset: str, reader: Any, shards: dict[str, list[Shard]]) -> dict[str, Any]:
    """The report that `load_report` reads, of the shards that `records.write_records` has written."""
    splits = {}
    for split, of_split in shards.items():
        total = {
            name: sum((Counter(shard[name]) for shard in of_split), Counter())
            for name in ("counts", "rules", "groups", "lengths")
        }
        skipped = [Skipped(*item) for shard in of_split for item in shard["skipped"]]
        splits[split] = {
            **{name: total["counts"][name] for name in COUNTS},
            "earlier_frames": dict(sorted(total["rules"].items())),
            "sentences_per_frame_pair": dict(sorted(total["lengths"].items(), key=lambda entry: int(entry[0]))),
            "groups": dict(sorted(total["groups"].items())),
            "skipped": by_reason(skipped),
        }
    return {
        "dataset": dataset,
        "raw": str(reader.raw),
        "interval": reader.interval,
        "layout": "prepared" if isinstance(reader, LBDTLayout) else "raw",
        "skipped_lines": by_reason(reader.skipped()),
        "splits": splits,
        "tokens": sorted({token for of_split in shards.values() for shard in of_split for token in shard["tokens"]}),
    }


def describe(report: dict[str, Any], examples: int = 20) -> str:
    """The counts of a report, and what was left out, or kept as its reason says: each with its first examples."""
    lines = []
    for split, counts in report["splits"].items():
        lines.append(
            f"  {split}: {counts['videos']} videos, {counts['frame_pairs']} frame pairs, {counts['instances']} "
            f"instances, {counts['sentences']} sentences"
            + (f", {counts['without_truth']} of them without published truth" if counts["without_truth"] else "")
            + "; earlier frame by "
            + ", ".join(f"{rule} {number}" for rule, number in counts["earlier_frames"].items())
        )
    sources = [("annotation lines", report["skipped_lines"])]
    sources += [(split, counts["skipped"]) for split, counts in report["splits"].items()]
    if any(skipped for _, skipped in sources):
        lines.append("  Left out, or kept as it says (all places are in report.json beside the records):")
    for source, skipped in sources:
        for reason, places in skipped.items():
            lines.append(f"    {source}: {len(places)} x {reason}")
            lines += [f"      {place}" for place in places[:examples]]
    return "\n".join(lines)


def by_reason(skipped: Iterable[Skipped]) -> dict[str, list[str]]:
    """Reason -> where, the most frequent reason first."""
    reasons: dict[str, list[str]] = {}
    for item in skipped:
        reasons.setdefault(item.reason, []).append(item.where)
    return dict(sorted(reasons.items(), key=lambda entry: -len(entry[1])))


def summarise(skipped: Iterable[Skipped]) -> str:
    """What was left out, for a message: each reason, how often, and the first place."""
    reasons = by_reason(skipped)
    return "\n".join(f"  {len(places)} x {reason}, first {places[0]}" for reason, places in reasons.items())
