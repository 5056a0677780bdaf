"""Makes the TFRecords of a data set from its raw files.

    python -m input_pipeline.prepare --dataset=a2d_sentences --raw=DIR --data_dir=DIR [--interval=FRAMES]

Nothing under --raw is changed; the records go to DATA_DIR/<dataset>/. When they are there already, it says so. A run
that was stopped goes on when it is started again. Moving Shapes is drawn first where --raw does not exist.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from input_pipeline.errors import UserError, exit_on_error
from input_pipeline.moving_shapes.reader import MovingShapes
from input_pipeline.readers.a2d_sentences import A2DSentences
from input_pipeline.readers.jhmdb_sentences import JHMDBSentences
from input_pipeline.readers.lbdt_layout import LBDTLayoutA2D, LBDTLayoutJHMDB, LBDTLayoutReferYouTubeVOS, is_lbdt_layout
from input_pipeline.readers.ref_davis17 import RefDAVIS17
from input_pipeline.readers.refer_youtube_vos import ReferYouTubeVOS
from input_pipeline.records import write_records
from input_pipeline.report import describe, is_prepared, load_report, records_dir

#: Data set -> its reader.
READERS = {
    "a2d_sentences": A2DSentences,
    "jhmdb_sentences": JHMDBSentences,
    "moving_shapes": MovingShapes,
    "ref_davis17": RefDAVIS17,
    "refer_youtube_vos": ReferYouTubeVOS,
}

#: The same in the layout that LBDT's released code prepares, where it has one.
LBDT_LAYOUT_READERS = {
    "a2d_sentences": LBDTLayoutA2D,
    "jhmdb_sentences": LBDTLayoutJHMDB,
    "refer_youtube_vos": LBDTLayoutReferYouTubeVOS,
}


def open_reader(dataset: str, raw: Path, interval: int) -> Any:
    """The reader of a data set, by the layout of the folder `raw`; see `input_pipeline.readers`."""
    kind = READERS[dataset]
    if dataset in LBDT_LAYOUT_READERS and is_lbdt_layout(raw):
        kind = LBDT_LAYOUT_READERS[dataset]
        print(f"{raw} is read in the layout of LBDT's released code, since train.txt or val.txt lies there.")
    return kind(raw, interval)


def prepare(dataset: str, raw: str | Path, data_dir: str | Path, interval: int | None = None) -> dict[str, Any]:
    """Makes the records of a data set unless they are there, and prints what was found and what was left out.

    Args:
      dataset: a key of `READERS`.
      raw: the unpacked data set; "" means DATA_DIR/raw/<dataset>. Moving Shapes is drawn there if it does not exist.
      data_dir: where the records of all data sets lie.
      interval: frames from the earlier frame to the frame; None means the published one of the data set.

    Returns:
      The report, see `input_pipeline.report.load_report`.

    Raises:
      UserError: unknown data set, raw data missing, or records made with another interval are in the way.
    """
    if dataset not in READERS:
        raise UserError(f"Unknown data set {dataset!r}; known are {', '.join(sorted(READERS))}.")
    if interval is None:
        interval = READERS[dataset].interval
    if interval < 1:
        raise UserError(f"The interval must be at least 1 frame, and not {interval}.")
    folder = records_dir(data_dir, dataset)
    if is_prepared(data_dir, dataset):
        report = load_report(data_dir, dataset)
        if report["interval"] != interval:
            raise UserError(
                f"The records in {folder} were made with interval {report['interval']}, and {interval} is asked for. "
                "Delete that folder to make them again, or choose another data_dir."
            )
        print(
            f"{dataset} is prepared: {folder}, from {report['raw']}. If the raw data have changed, delete that folder."
        )
        print(describe(report, examples=0))
        return report

    raw = Path(raw or Path(data_dir) / "raw" / dataset)
    if dataset == "moving_shapes" and not raw.exists():
        from input_pipeline.moving_shapes.raw_layout import write_raw  # draws: nothing that other data sets need

        write_raw(raw)
    reader = open_reader(dataset, raw, interval)
    print(f"{dataset} in {raw}:")
    for thing, (found, expected) in reader.inventory().items():
        print(f"  {found} {thing}" + (f" of {expected} in the full data set" if expected is not None else ""))
    report = write_records(dataset, reader, data_dir)
    print(f"Records in {folder}:")
    print(describe(report))
    return report


def main() -> None:
    """Parses the command line and prepares the data set."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.prepare", description="Makes the TFRecords of a data set from its raw files."
    )
    parser.add_argument("--dataset", required=True, help="one of " + ", ".join(sorted(READERS)))
    parser.add_argument("--raw", default="", help="folder of the unpacked data set (default: DATA_DIR/raw/DATASET)")
    parser.add_argument("--data_dir", default="data", help="records go to DATA_DIR/<dataset>/ (default: data)")
    parser.add_argument("--interval", type=int, help="frames from earlier frame to frame (default: as published)")
    arguments = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid text
    with exit_on_error("Interrupted. The same command continues after the last complete shard."):
        prepare(arguments.dataset, arguments.raw, arguments.data_dir, arguments.interval)


if __name__ == "__main__":
    main()
