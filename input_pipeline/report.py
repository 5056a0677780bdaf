"""The report on a dataset's records: what they hold and what was skipped. Needs no TensorFlow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from input_pipeline.errors import UserError
from input_pipeline.files import Fingerprint
from input_pipeline.record_index import IndexEntry
from input_pipeline.types import Reader, Skipped

#: Version of the record format. Records of a new version are written next to those of an old one.
VERSION = "2.0.0"

#: What the report counts in each split.
COUNTS = ("videos", "frame_pairs", "instances", "sentences", "without_truth")


class ShardSummary(TypedDict):
    """What is recorded about a shard when it is written.

    Attributes:
      counts: name in `COUNTS` -> count.
      rules: rule that selected the earlier frame -> number of frame pairs.
      groups: group -> number of sentences.
      lengths: number of sentences of a frame pair, as a string -> number of frame pairs.
      skipped: [where, reason] of everything that was skipped.
      tokens: of all sentences, sorted.
      index: an `IndexEntry` for each record.
      bytes: size of the file.
      files: path -> fingerprint of the raw files that it was made from, see `files.record_files`.
    """

    counts: dict[str, int]
    rules: dict[str, int]
    groups: dict[str, int]
    lengths: dict[str, int]
    skipped: list[list[str]]
    tokens: list[str]
    index: list[IndexEntry]
    bytes: int
    files: dict[str, Fingerprint]


def records_dir(data_dir: str | Path, dataset: str) -> Path:
    """Returns the folder of a dataset's records. Raises UserError if TensorFlow can't write to a path like this."""
    folder = Path(data_dir) / dataset / VERSION
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{folder}: the path of the records is not UTF-8 text. Choose another data_dir.") from error
    return folder


def records_exist(data_dir: str | Path, dataset: str) -> bool:
    """Returns whether a dataset has complete records."""
    return (records_dir(data_dir, dataset) / "dataset_info.json").exists()


def load_report(data_dir: str | Path, dataset: str) -> dict[str, Any]:
    """Loads the report that was written with the records.

    Returns:
      {"dataset", "raw", "interval",
       "no_target_sentences": whether "train" has sentences without a target; absent if the dataset has none
       "layout": "raw", or "prepared" for the layout of LBDT's released code,
       "skipped_lines": {reason: [where, ...]}        of annotation files
       "splits": {split: {"videos", "frame_pairs", "instances", "sentences",
                          "without_truth": sentences whose ground truth is not published,
                          "earlier_frames": {rule: number of frame pairs},
                          "groups": {group: number of sentences},
                          "sentences_per_frame_pair": {number of sentences: number of frame pairs},
                          "skipped": {reason: [where, ...]}}},
       "tokens": [...]                                of all sentences, sorted
       "resized": {"HEIGHTxWIDTH": {"frame_pairs", "bytes"}}}    what `input_pipeline.resized` keeps; absent for none

    Raises:
      UserError: there are no records yet, or the report can't be read.
    """
    if not records_exist(data_dir, dataset):
        raise UserError(
            f"No records of {dataset} in {records_dir(data_dir, dataset)}. Make them with\n"
            f"  python -m input_pipeline.prepare --dataset={dataset} --raw=RAW_DATA --data_dir={data_dir}"
        )
    path = records_dir(data_dir, dataset) / "report.json"
    try:
        report = json.loads(path.read_text("utf-8"))
        _check_fields("the report", report, _REPORT_FIELDS)
        for split, counts in report["splits"].items():
            _check_fields(f"split {split!r}", counts, _SPLIT_FIELDS)
        for size, kept in report.get("resized", {}).items():
            _check_fields(f"resized {size!r}", kept, {"frame_pairs": _is_count, "bytes": _is_count})
        return report
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read ({error}). Delete {path.parent} and make the records again.") from error


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_count, value.values()))


def _are_locations(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_are_texts, value.values()))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


#: Field of a report, and of a split in it -> whether a value is of its kind.
_REPORT_FIELDS: dict[str, Callable[[Any], bool]] = {
    **{"dataset": _is_text, "raw": _is_text, "interval": _is_count, "layout": _is_text, "tokens": _are_texts},
    **{"skipped_lines": _are_locations, "splits": _is_object},
}
_SPLIT_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(COUNTS, _is_count),
    **{"earlier_frames": _are_counts, "groups": _are_counts, "skipped": _are_locations},
    "sentences_per_frame_pair": lambda value: _are_counts(value) and all(map(str.isdecimal, value)),
}


def _check_fields(name: str, value: Any, fields: Mapping[str, Callable[[Any], bool]]) -> None:
    """Raises ValueError unless a value is an object with these fields, and maybe others."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    for field, is_valid in fields.items():
        if field not in value or not is_valid(value[field]):
            raise ValueError(f"{name} has no valid {field!r}")


def make_report(dataset: str, reader: Reader, layout: str, summaries: dict[str, list[ShardSummary]]) -> dict[str, Any]:
    """Combines the shard summaries of each split into the report that `load_report` describes."""
    splits = {}
    for split, shards in summaries.items():
        counts = _total(shard["counts"] for shard in shards)
        rules = _total(shard["rules"] for shard in shards)
        groups = _total(shard["groups"] for shard in shards)
        lengths = _total(shard["lengths"] for shard in shards)
        splits[split] = {
            **{name: counts[name] for name in COUNTS},
            "earlier_frames": dict(sorted(rules.items())),
            "sentences_per_frame_pair": dict(sorted(lengths.items(), key=lambda entry: int(entry[0]))),
            "groups": dict(sorted(groups.items())),
            "skipped": group_by_reason(Skipped(*item) for shard in shards for item in shard["skipped"]),
        }
    no_target = {key: value for key, value in vars(reader).items() if key == "no_target_sentences"}
    return {
        "dataset": dataset,
        "raw": str(reader.raw),
        "interval": reader.interval,
        **no_target,
        "layout": layout,
        "skipped_lines": group_by_reason(reader.skipped()),
        "splits": splits,
        "tokens": sorted({token for shards in summaries.values() for shard in shards for token in shard["tokens"]}),
    }


def format_report(report: dict[str, Any], max_examples: int = 20) -> str:
    """Formats the counts of a report and, for each reason to skip something, how often it applied and where.

    Args:
      report: as `load_report` returns it.
      max_examples: number of locations to list for each reason.
    """
    lines = []
    for split, counts in report["splits"].items():
        lines.append(
            f"  {split}: {counts['videos']} videos, {counts['frame_pairs']} frame pairs, {counts['instances']} "
            f"instances, {counts['sentences']} sentences"
            + (f", {counts['without_truth']} of them without published ground truth" if counts["without_truth"] else "")
            + "; earlier frame by "
            + ", ".join(f"{rule} {count}" for rule, count in counts["earlier_frames"].items())
        )
    for size, kept in report.get("resized", {}).items():
        lines.append(
            f"  resized to {size} for training: {kept['frame_pairs']} frame pairs, {kept['bytes'] / 1e9:.3g} GB"
        )
    sources = [("annotation lines", report["skipped_lines"])]
    sources += [(split, counts["skipped"]) for split, counts in report["splits"].items()]
    if any(skipped for _, skipped in sources):
        lines.append("  Skipped, unless the reason says otherwise (all cases are in report.json next to the records):")
    for source, skipped in sources:
        for reason, locations in skipped.items():
            lines.append(f"    {source}: {len(locations)} x {reason}")
            lines += [f"      {_printable(location)}" for location in locations[:max_examples]]
    return "\n".join(lines)


def format_skipped(skipped: Iterable[Skipped]) -> str:
    """Formats what was skipped for an error message: each reason, how often it applied, and where first."""
    reasons = group_by_reason(skipped)
    lines = [
        f"  {len(locations)} x {reason}, first {_printable(locations[0])}" for reason, locations in reasons.items()
    ]
    return "\n".join(lines)


def _printable(location: str) -> str:
    """A location, which may contain part of a sentence, without the control characters that terminals obey."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in location)


def group_by_reason(skipped: Iterable[Skipped]) -> dict[str, list[str]]:
    """Returns reason -> locations, the most frequent reason first."""
    reasons: dict[str, list[str]] = {}
    for item in skipped:
        reasons.setdefault(item.reason, []).append(item.where)
    return dict(sorted(reasons.items(), key=lambda entry: -len(entry[1])))


def _total(counters: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Adds counters."""
    return sum((Counter(counter) for counter in counters), Counter())
