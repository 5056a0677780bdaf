"""Any reader -> TFRecords. A record is a frame pair with all its instances and sentences, so no picture is kept twice.

The records lie in DATA_DIR/<dataset>/<VERSION>/, written by TensorFlow Datasets: into a folder with another name, which
gets the right one when everything is whole. Beside them lies report.json: counts, everything left out with its reason,
and every token of the sentences. This module loads TensorFlow only when it writes or reads, so that the processes which
read the raw data start fast.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from input_pipeline.images import encode_frame, encode_mask
from input_pipeline.readers import DataError, FramePair, Skipped
from input_pipeline.readers.a2d_sentences import A2DSentences
from input_pipeline.readers.jhmdb_sentences import JHMDBSentences
from input_pipeline.readers.moving_shapes import MovingShapes
from input_pipeline.readers.ref_davis17 import RefDAVIS17
from input_pipeline.readers.refer_youtube_vos import ReferYouTubeVOS
from input_pipeline.text import tokenize
from input_pipeline.workers import cores, worker_pool

#: Data set -> its reader.
READERS = {
    "a2d_sentences": A2DSentences,
    "jhmdb_sentences": JHMDBSentences,
    "moving_shapes": MovingShapes,
    "ref_davis17": RefDAVIS17,
    "refer_youtube_vos": ReferYouTubeVOS,
}

#: Of the records' layout; a new one is written beside the old.
VERSION = "1.0.0"

Record = dict[str, Any]

# TensorFlow only moves bytes here: its errors, without its notes about this processor.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


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
       "skipped_lines": {reason: [where, ...]}        of the annotation files
       "splits": {split: {"videos", "frame_pairs", "instances", "sentences",
                          "earlier_frames": {rule: frame pairs}, "groups": {group: sentences},
                          "sentences_per_frame_pair": {number: frame pairs},
                          "skipped": {reason: [where, ...]}}},
       "tokens": [...]}                               of all sentences, sorted

    Raises:
      DataError: there are no records yet, or the report can't be read.
    """
    if not is_prepared(data_dir, dataset):
        raise DataError(
            f"No records of {dataset} in {records_dir(data_dir, dataset)}. Make them with\n"
            f"  python -m input_pipeline.prepare --dataset={dataset} --raw=RAW_DATA --data_dir={data_dir}"
        )
    path = records_dir(data_dir, dataset) / "report.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read ({error}). Delete {path.parent} and prepare the data again.") from error


def write_records(dataset: str, reader: Any, data_dir: str | Path) -> dict[str, Any]:
    """Reads everything, in as many processes as there are cores, and writes the records.

    Args:
      dataset: the data set's name, a folder under `data_dir`.
      reader: see `input_pipeline.readers`.
      data_dir: where the records of all data sets lie.

    Returns:
      The report, as `load_report` gives it.

    Raises:
      DataError: raw data are missing, or not one frame pair of a split could be read. Nothing is left behind then.
    """
    for split in reader.splits():
        if not reader.videos(split):
            raise DataError(f"{reader.raw}: no video of split {split!r} has a sentence.\n{_summary(reader.skipped())}")
    with worker_pool(initializer=_keep_reader, initargs=(reader,)) as pool:
        builder = FramePairs(dataset, reader, data_dir, pool)
        tfds.disable_progress_bar()  # there is one over the videos below
        # TFDS announces a download and makes a folder for it; there is none.
        with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as downloads:
            builder.download_and_prepare(download_dir=downloads)
    return load_report(data_dir, dataset)


class FramePairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The TFDS builder of every reader's records."""

    VERSION = tfds.core.Version(VERSION)
    code_path = None  # TFDS would look for download checksums beside it, by way of a package that it does not require

    def __init__(self, dataset: str, reader: Any, data_dir: str | Path, pool: Executor):
        """See `write_records`; `pool` runs `_encode_videos` in processes that know the reader."""
        self.name = dataset
        self.reader = reader
        self.pool = pool
        self.tokens: set[str] = set()
        self.report = {
            "dataset": dataset,
            "raw": str(reader.raw),
            "interval": reader.interval,
            "skipped_lines": _by_reason(reader.skipped()),
            "splits": {},
        }
        super().__init__(data_dir=os.fspath(data_dir))

    def _info(self) -> tfds.core.DatasetInfo:
        picture = tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")
        features = {
            "video": tfds.features.Text(),
            "frame_index": tfds.features.Scalar(np.int64),
            "height": tfds.features.Scalar(np.int64),
            "width": tfds.features.Scalar(np.int64),
            "frame": picture,
            "earlier_frame": picture,
            "earlier_rule": tfds.features.Text(),
            "instances": tfds.features.Sequence(
                {
                    "id": tfds.features.Scalar(np.int64),
                    "mask": tfds.features.Scalar(np.object_, doc="PNG with one bit a pixel"),
                }
            ),
            "sentences": tfds.features.Sequence(
                {
                    "text": tfds.features.Text(),
                    "instance": tfds.features.Scalar(np.int64),
                    "group": tfds.features.Text(),
                }
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Frame pairs with the masks of their instances and the sentences that refer to them.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, Record]]]:
        return {split: self._generate_examples(split) for split in self.reader.splits()}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, Record]]:
        """The records of a split in the order of its videos; counts them, and writes the report at the end."""
        counts, rules, groups, lengths, skipped = Counter(), Counter(), Counter(), Counter(), []
        for records, skipped_here in _encode_in_parallel(self.pool, self.reader.videos(split), split):
            skipped += skipped_here
            counts["videos"] += bool(records)
            for record in records:
                counts["frame_pairs"] += 1
                counts["instances"] += len(record["instances"])
                counts["sentences"] += len(record["sentences"])
                lengths[len(record["sentences"])] += 1
                rules[record["earlier_rule"]] += 1
                for sentence in record["sentences"]:
                    groups[sentence["group"]] += 1
                    self.tokens.update(tokenize(sentence["text"], max_words=len(sentence["text"])))
                yield f"{record['video']}/{record['frame_index']}", record
        if not counts["frame_pairs"]:
            raise DataError(
                f"{self.reader.raw}: not one frame pair of split {split!r} could be read.\n{_summary(skipped)}"
            )
        self.report["splits"][split] = {
            **counts,
            "earlier_frames": dict(rules),
            "sentences_per_frame_pair": {str(length): lengths[length] for length in sorted(lengths)},
            "groups": dict(sorted(groups.items())),
            "skipped": _by_reason(skipped),
        }
        self.report["tokens"] = sorted(self.tokens)
        (Path(self.data_dir) / "report.json").write_text(json.dumps(self.report, indent=1), "utf-8")


def _keep_reader(reader: Any) -> None:
    """In a worker, once: the reader holds all sentences, too much to send with every task."""
    global _reader
    _reader = reader


def _encode_videos(videos: list[str]) -> list[tuple[list[Record], list[Skipped]]]:
    """In a worker: the records of some videos, and what was left out."""
    encoded = []
    for video in videos:
        items = list(_reader.read(video))
        encoded.append(
            (
                [encode_record(item) for item in items if isinstance(item, FramePair)],
                [item for item in items if isinstance(item, Skipped)],
            )
        )
    return encoded


def encode_record(pair: FramePair) -> Record:
    """A frame pair as it is stored: the pictures at their original size, frames as JPEG and masks as PNG."""
    height, width = pair.frame.shape[:2]
    return {
        "video": pair.video,
        "frame_index": pair.frame_index,
        "height": height,
        "width": width,
        "frame": encode_frame(pair.frame),
        "earlier_frame": encode_frame(pair.earlier_frame),
        "earlier_rule": pair.earlier_rule,
        "instances": [{"id": number, "mask": encode_mask(mask)} for number, mask in pair.masks.items()],
        "sentences": [
            {"text": sentence.text, "instance": sentence.instance, "group": sentence.group}
            for sentence in pair.sentences
        ],
    }


def _encode_in_parallel(
    pool: Executor, videos: list[str], split: str, chunk: int = 8
) -> Iterator[tuple[list[Record], list[Skipped]]]:
    """`_encode_videos` of all videos in their order, never more than a few chunks ahead of the writer."""
    waiting = deque()
    with tqdm(total=len(videos), desc=f"{split} videos", unit="") as progress:
        try:
            for start in range(0, len(videos), chunk):
                waiting.append(pool.submit(_encode_videos, videos[start : start + chunk]))
                while waiting and (len(waiting) > 4 * cores() or start + chunk >= len(videos)):
                    for encoded in waiting.popleft().result():
                        yield encoded
                        progress.update()
        except BrokenProcessPool as error:
            near = videos[progress.n]
            raise DataError(
                f"A process that read the videos of split {split!r} died at or soon after {near}. Out of memory, or a "
                "file that crashes its decoder: look at the files of these videos."
            ) from error


def _by_reason(skipped: tuple[Skipped, ...] | list[Skipped]) -> dict[str, list[str]]:
    """Reason -> where, the most frequent reason first."""
    reasons: dict[str, list[str]] = {}
    for item in skipped:
        reasons.setdefault(item.reason, []).append(item.where)
    return dict(sorted(reasons.items(), key=lambda entry: -len(entry[1])))


def _summary(skipped: tuple[Skipped, ...] | list[Skipped]) -> str:
    """What was left out, for a message: each reason, how often, and the first place."""
    reasons = _by_reason(skipped)
    return "\n".join(f"  {len(places)} x {reason}, first {places[0]}" for reason, places in reasons.items())
