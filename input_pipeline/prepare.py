"""Makes the TFRecords of a dataset from its raw files.

    python -m input_pipeline.prepare --dataset=a2d_sentences --raw=DIR --data_dir=DIR [--interval=FRAMES]
        [--image_size=HEIGHTxWIDTH] [--no_target_sentences]

The records go to DATA_DIR/<dataset>/; nothing under --raw is changed. If the records already exist, the command only
prints their report. An interrupted run resumes when it is started again. Moving Shapes is generated first if --raw
does not exist.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.datasets import all_datasets, training_datasets
from input_pipeline.errors import UserError, exit_on_error, interrupt_on_sigterm
from input_pipeline.files import expand_home
from input_pipeline.moving_shapes.reader import MovingShapes
from input_pipeline.readers.a2d_sentences import A2DSentences
from input_pipeline.readers.jhmdb_sentences import JHMDBSentences
from input_pipeline.readers.lbdt_layout import LBDTLayoutA2D, LBDTLayoutJHMDB, LBDTLayoutReferYouTubeVOS, is_lbdt_layout
from input_pipeline.readers.mevis import MeViS
from input_pipeline.readers.own import OwnClips
from input_pipeline.readers.ref_davis17 import RefDAVIS17
from input_pipeline.readers.refcoco import GRefCOCO, RefCOCO, RefCOCOg, RefCOCOPlus
from input_pipeline.readers.refer_youtube_vos import ReferYouTubeVOS
from input_pipeline.record_writer import write_records
from input_pipeline.report import format_report, load_report, records_dir, records_exist
from input_pipeline.resized import parse_size, write_resized
from input_pipeline.types import Reader

#: Dataset -> its reader, called with the raw folder and, optionally, the interval.
READERS: dict[str, Callable[..., Reader]] = {
    "a2d_sentences": A2DSentences,
    "grefcoco": GRefCOCO,
    "jhmdb_sentences": JHMDBSentences,
    "mevis": MeViS,
    "moving_shapes": MovingShapes,
    "own": OwnClips,
    "ref_davis17": RefDAVIS17,
    "refcoco": RefCOCO,
    "refcoco_plus": RefCOCOPlus,
    "refcocog": RefCOCOg,
    "refer_youtube_vos": ReferYouTubeVOS,
}

#: Dataset -> its reader for the layout that the preprocessing of LBDT's released code produces.
LBDT_LAYOUT_READERS: dict[str, Callable[..., Reader]] = {
    "a2d_sentences": LBDTLayoutA2D,
    "jhmdb_sentences": LBDTLayoutJHMDB,
    "refer_youtube_vos": LBDTLayoutReferYouTubeVOS,
}


def prepare(
    dataset: str,
    raw: str | Path,
    data_dir: str | Path,
    interval: int | None = None,
    image_size: tuple[int, int] | None = None,
    no_target_sentences: bool | None = None,
) -> dict[str, Any]:
    """Makes the records of a dataset unless they exist, and prints what was found and what was skipped.

    Args:
      dataset: a key of `READERS`.
      raw: folder of the unpacked dataset; "" stands for DATA_DIR/raw/<dataset>, or whatever existing records were made
        from. If it does not exist, Moving Shapes is generated there.
      data_dir: folder with the records of all datasets.
      interval: frames from the earlier frame to the frame; None for the published interval of the dataset.
      image_size: (H, W) of the frames and targets to keep resized for training, see `input_pipeline.resized`; None for
        none.
      no_target_sentences: whether to train on sentences without a target, of datasets that have them; None for no, or
        for whatever the existing records have.

    Returns:
      The report, see `input_pipeline.report.load_report`.

    Raises:
      UserError: the dataset is unknown, raw data are missing or lie where records go, or records with other settings
        exist.
    """
    _check_name(dataset)
    given_raw = Path(raw) if raw else None
    raw = given_raw or Path(data_dir) / "raw" / dataset
    if interval is None:
        interval = READERS[dataset](raw).interval
    if interval < 1:
        raise UserError(f"The interval must be at least 1 frame, not {interval}.")
    folder = records_dir(data_dir, dataset)
    if records_exist(data_dir, dataset):
        report = load_report(data_dir, dataset)
        if report["interval"] != interval:
            raise UserError(
                f"The records in {folder} were made with interval {report['interval']}, not {interval}. Delete that "
                "folder to make them again, or choose another data_dir."
            )
        if given_raw is not None and _is_another(given_raw, Path(report["raw"])):
            raise UserError(
                f"The records in {folder} were made from {report['raw']}, not from {given_raw}. Delete that folder to "
                "make them again, or choose another data_dir."
            )
        has_no_target = report.get("no_target_sentences", False)
        if no_target_sentences is not None and has_no_target is not no_target_sentences:
            raise UserError(
                f"The records in {folder} were made {'with' if has_no_target else 'without'} training sentences that "
                f"have no target, but config.no_target_sentences is {no_target_sentences}. Change it, delete that "
                "folder to make the records again, or choose another data_dir."
            )
        print(
            f"The records of {dataset} exist: {folder}, from {report['raw']}. If the raw data have changed, delete "
            "that folder."
        )
        max_examples = 0
    else:
        _check_apart(raw, folder.parent)
        _make_records(dataset, raw, data_dir, interval, bool(no_target_sentences))
        print(f"Records in {folder}:")
        max_examples = 20
    if image_size is not None:
        write_resized(dataset, data_dir, image_size)
    report = load_report(data_dir, dataset)
    print(format_report(report, max_examples))
    return report


def prepare_for(config: ConfigDict, datasets: Sequence[str] = ()) -> None:
    """`prepare` with the fields of a configuration.

    The fields raw and frame_interval are those of config.dataset. The records of others are made from
    DATA_DIR/raw/<dataset> with the published interval, or used as they are.

    Args:
      config: see configs/base.py.
      datasets: to prepare; by default all that training and evaluation need.

    Raises:
      UserError: as `prepare`. Raw data that are missing are reported before any records are made.
    """
    datasets = datasets or all_datasets(config)
    check_raw_data(config, datasets)
    trained = training_datasets(config)
    with_no_target = [name for name in trained if name in READERS and _has_no_target_option(name)]
    for name in datasets:
        raw, interval = (config.raw, config.frame_interval) if name == config.dataset else ("", None)
        if interval is None and records_exist(config.data_dir, name):
            interval = load_report(config.data_dir, name)["interval"]
        # With several datasets, the field is for those that have such sentences.
        applies = name in (trained if len(trained) == 1 else with_no_target or [config.dataset])
        no_target_sentences = config.no_target_sentences if applies else None
        prepare(name, raw, config.data_dir, interval, no_target_sentences=no_target_sentences)


def check_raw_data(config: ConfigDict, datasets: Sequence[str] = ()) -> None:
    """Raises UserError if a dataset of `prepare_for` is unknown, or neither its records nor its raw folder exist."""
    for dataset in datasets or all_datasets(config):
        _check_name(dataset)
        raw = Path((dataset == config.dataset and config.raw) or Path(config.data_dir) / "raw" / dataset)
        if not (records_exist(config.data_dir, dataset) or raw.exists() or dataset == "moving_shapes"):
            READERS[dataset](raw).inventory()  # its message says what to download


def _is_another(raw: Path, recorded: Path) -> bool:
    """Whether raw data are not those that records were made from, as far as both are here: they may have moved."""
    try:
        return not raw.samefile(recorded)
    except (OSError, ValueError):  # one of them does not exist
        return False


def _check_apart(raw: Path, records: Path) -> None:
    """Raises UserError if the raw folder and the folder of the records lie in one another."""
    first, second = raw.resolve(), records.resolve()
    if first.is_relative_to(second) or second.is_relative_to(first):
        raise UserError(
            f"The raw data in {raw} and the records, which go to {records}, must not lie in one another: raw data are "
            "never changed, and records are deleted to make them again. Move the raw data, or choose another data_dir."
        )


def _check_name(dataset: str) -> None:
    if dataset not in READERS:
        raise UserError(f"Unknown dataset {dataset!r}. Choose one of {', '.join(sorted(READERS))}.")


def _has_no_target_option(dataset: str) -> bool:
    """Whether a dataset has sentences without a target, on which one may train or not."""
    return hasattr(READERS[dataset](Path()), "no_target_sentences")


def _make_records(dataset: str, raw: Path, data_dir: str | Path, interval: int, no_target_sentences: bool) -> None:
    """Reads the raw data, in whichever layout they are, and writes the records."""
    if dataset == "moving_shapes" and not raw.exists():
        from input_pipeline.moving_shapes.raw_layout import write_raw  # other datasets don't need the generator

        write_raw(raw)
    if dataset in LBDT_LAYOUT_READERS and is_lbdt_layout(raw):
        reader, layout = LBDT_LAYOUT_READERS[dataset](raw, interval), "prepared"
        print(f"{raw} is read in the layout of LBDT's released code, which has train.txt and val.txt.")
    else:
        reader, layout = READERS[dataset](raw, interval), "raw"
    if no_target_sentences:
        if not _has_no_target_option(dataset):
            raise UserError(f"{dataset} has no sentences without a target: set config.no_target_sentences to False.")
        reader = READERS[dataset](raw, interval, no_target_sentences=True)
    print(f"{dataset} in {raw}:")
    for item, (count, full_count) in reader.inventory().items():
        print(f"  {count} {item}" + (f" of {full_count} in the full dataset" if full_count is not None else ""))
    write_records(dataset, reader, data_dir, layout)


def main() -> None:
    """Parses the command line and prepares the dataset."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.prepare", description="Makes the TFRecords of a dataset from its raw files."
    )
    parser.add_argument("--dataset", required=True, help="one of " + ", ".join(sorted(READERS)))
    parser.add_argument(
        "--raw", type=expand_home, default="", help="folder of the unpacked dataset (default: DATA_DIR/raw/DATASET)"
    )
    parser.add_argument(
        "--data_dir", type=expand_home, default="data", help="records go to DATA_DIR/<dataset>/ (default: data)"
    )
    parser.add_argument(
        "--interval", type=int, help="frames from the earlier frame to the frame (default: as published)"
    )
    parser.add_argument(
        "--image_size",
        metavar="HEIGHTxWIDTH",
        help="also keep the training frames resized to config.image_size, which makes training batches faster",
    )
    parser.add_argument(
        "--no_target_sentences",
        action="store_true",
        help="also train on sentences without a target (mevis, grefcoco); see config.no_target_sentences",
    )
    arguments = parser.parse_args()
    with (
        exit_on_error("Interrupted. The same command continues after the last complete shard."),
        interrupt_on_sigterm(),
    ):
        image_size = None if arguments.image_size is None else parse_size(arguments.image_size)
        prepare(
            arguments.dataset,
            arguments.raw,
            arguments.data_dir,
            arguments.interval,
            image_size,
            arguments.no_target_sentences or None,
        )


if __name__ == "__main__":
    main()
