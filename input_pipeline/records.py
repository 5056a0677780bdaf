"""Any reader -> TFRecords. A record is a frame pair with all its instances and sentences, so no picture is kept twice.

The records lie in DATA_DIR/<dataset>/<VERSION>/ as TensorFlow Datasets reads them (`tfds.builder_from_directory`).
Shards are written one after the other, a fixed choice of videos to each, into a folder with another name, which gets
the right one when all are there: a run that was stopped goes on behind its last whole shard, and the bytes are the same
however often it was stopped and however many processes read. Beside the records lies report.json: counts, everything
left out with its reason, and every token of the sentences.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from input_pipeline.errors import UserError
from input_pipeline.images import encode_frame, encode_labels, encode_mask
from input_pipeline.report import VERSION, Shard, load_report, make_report, records_dir, summarise
from input_pipeline.text.tokenizer import tokenize
from input_pipeline.types import FramePair, Skipped
from input_pipeline.workers import cores, worker_pool

#: A shard is what an interrupted run has to do again; their order and mixture are what training shuffles.
VIDEOS_PER_SHARD = 64

#: Stands for an instance that is not published.
NO_INSTANCE = -1

FILES = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"

Record = dict[str, Any]

# TensorFlow only moves bytes here: its errors, without its notes about this processor.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def features() -> tfds.features.FeaturesDict:
    """What a record holds, at the original size: frames as JPEG or PNG, masks as PNG."""
    picture = tfds.features.Image(shape=(None, None, 3))  # JPEG or PNG
    return tfds.features.FeaturesDict(
        {
            "video": tfds.features.Text(),
            "frame_index": tfds.features.Scalar(np.int64),
            "height": tfds.features.Scalar(np.int64),
            "width": tfds.features.Scalar(np.int64),
            "frame": picture,
            "earlier_frame": picture,
            "earlier_rule": tfds.features.Text(),
            "labels": tfds.features.Scalar(np.object_, doc="PNG with a byte a pixel, see FramePair; empty for none"),
            "instances": tfds.features.Sequence(
                {
                    "id": tfds.features.Scalar(np.int64),
                    "mask": tfds.features.Scalar(np.object_, doc="PNG with one bit a pixel"),
                }
            ),
            "sentences": tfds.features.Sequence(
                {
                    "text": tfds.features.Text(),
                    "instance": tfds.features.Scalar(np.int64, doc=f"{NO_INSTANCE} where the truth is not published"),
                    "group": tfds.features.Text(),
                    "expression": tfds.features.Text(),
                }
            ),
        }
    )


def encode_record(pair: FramePair) -> Record:
    """A frame pair as `features` describes it."""
    height, width = pair.frame.shape[:2]
    frame, earlier_frame = pair.files or map(encode_frame, (pair.frame, pair.earlier_frame))
    return {
        "video": pair.video,
        "frame_index": pair.frame_index,
        "height": height,
        "width": width,
        "frame": frame,
        "earlier_frame": earlier_frame,
        "earlier_rule": pair.earlier_rule,
        "labels": b"" if pair.labels is None else encode_labels(pair.labels),
        "instances": [{"id": number, "mask": encode_mask(mask)} for number, mask in pair.masks.items()],
        "sentences": [
            {
                "text": sentence.text,
                "instance": NO_INSTANCE if sentence.instance is None else sentence.instance,
                "group": sentence.group,
                "expression": sentence.expression,
            }
            for sentence in pair.sentences
        ],
    }


def write_records(dataset: str, reader: Any, data_dir: str | Path) -> dict[str, Any]:
    """Reads everything, in as many processes as there are cores, and writes the records.

    Args:
      dataset: the data set's name, a folder under `data_dir`.
      reader: see `input_pipeline.readers`.
      data_dir: where the records of all data sets lie.

    Returns:
      The report, as `load_report` gives it.

    Raises:
      UserError: raw data are missing, not one frame pair of a split could be read, another process is writing the same
        records, or the disk is full.
    """
    # Videos that lie side by side are often alike; in the order of a checksum they are not.
    splits = {
        split: sorted(
            reader.videos(split), key=lambda video, split=split: (zlib.crc32(f"{split}/{video}".encode()), video)
        )
        for split in reader.splits()
    }
    for split, videos in splits.items():
        if not videos:
            raise UserError(f"{reader.raw}: no video of split {split!r} has a sentence.\n{summarise(reader.skipped())}")
    folder = records_dir(data_dir, dataset)
    if folder.exists():
        raise UserError(f"{folder} is in the way: it does not hold whole records. Move it away.")
    unfinished = folder.with_name(f"{VERSION}.unfinished")
    with _locked_output_dir(unfinished, _plan(dataset, reader, splits)):
        shards = {}
        with worker_pool(initializer=_keep_reader, initargs=(reader,)) as pool:
            for split, videos in splits.items():
                shards[split] = _write_split(unfinished, dataset, split, videos, pool)
                if not any(shard["counts"].get("frame_pairs") for shard in shards[split]):
                    for file in unfinished.glob(f"{dataset}-{split}.*"):  # once it can be read, it is read
                        file.unlink()
                    skipped = [Skipped(*item) for shard in shards[split] for item in shard["skipped"]]
                    raise UserError(
                        f"{reader.raw}: not one frame pair of split {split!r} could be read.\n{summarise(skipped)}"
                    )
        report = make_report(dataset, reader, shards)
        (unfinished / "report.json").write_text(json.dumps(report, indent=1), "utf-8")
        _describe(unfinished, dataset, shards)
        os.replace(unfinished, folder)
        for file in [folder / "plan.json", *folder.glob("*.counts.json")]:
            file.unlink()
    return load_report(data_dir, dataset)


def _plan(dataset: str, reader: Any, splits: dict[str, list[str]]) -> dict[str, Any]:
    """What the shards depend on, apart from the pictures: only a run with the same plan may go on with them."""
    reader.skipped()  # with `inventory`, everything that readers keep of their annotation files
    content = repr((splits, reader.inventory(), vars(reader), VIDEOS_PER_SHARD))
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    return {"dataset": dataset, "raw": str(reader.raw), "interval": reader.interval, "digest": digest}


@contextlib.contextmanager
def _locked_output_dir(unfinished: Path, plan: dict[str, Any]) -> Iterator[None]:
    """The folder to write to, with the whole shards of a stopped run in it if its plan was the same; ours alone."""
    unfinished.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(unfinished, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system gives it back when a process dies
        except BlockingIOError as error:
            raise UserError(f"Another process is writing to {unfinished}. Wait for it, or stop it.") from error
        path = unfinished / "plan.json"
        if not path.exists() or path.read_text("utf-8") != json.dumps(plan):
            for file in unfinished.iterdir():
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            path.write_text(json.dumps(plan), "utf-8")
        yield
    finally:
        os.close(descriptor)


def _write_split(unfinished: Path, dataset: str, split: str, videos: list[str], pool: Executor) -> list[Shard]:
    """Writes the shards of a split that are not there yet, and returns what is known of each."""
    parts = [videos[start : start + VIDEOS_PER_SHARD] for start in range(0, len(videos), VIDEOS_PER_SHARD)]
    files = [
        unfinished / f"{dataset}-{split}.tfrecord-{number:05d}-of-{len(parts):05d}" for number in range(len(parts))
    ]
    counts = [file.with_name(f"{file.name}.counts.json") for file in files]
    whole = 0
    while whole < len(parts) and counts[whole].exists():
        whole += 1
    to_read = [video for part in parts[whole:] for video in part]
    if whole:
        print(f"{split}: goes on after {len(videos) - len(to_read)} of {len(videos)} videos of a run that was stopped.")
    with tqdm(total=len(videos), initial=len(videos) - len(to_read), desc=f"{split} videos", unit="") as progress:
        encoded = _encode_in_parallel(pool, to_read, split, progress)
        for number in range(whole, len(parts)):
            shard = _write_shard(files[number], itertools.islice(encoded, len(parts[number])))
            _write_json(shard, counts[number])  # says that the shard is whole
    return [json.loads(path.read_text("utf-8")) for path in counts]


def _write_shard(path: Path, encoded: Iterable[tuple[list[Record], list[Skipped]]]) -> Shard:
    """Writes the records of some videos.

    Returns:
      {"bytes": of the file, "counts", "rules", "groups", "lengths": see the report, "skipped": [[where, reason], ...],
      "tokens": [...]}

    Raises:
      UserError: TensorFlow could not write.
    """
    import tensorflow as tf  # only here: the processes that read raw data don't need it

    kind = features()
    counts, rules, groups, lengths, skipped, tokens = Counter(), Counter(), Counter(), Counter(), [], set()
    try:
        with tf.io.TFRecordWriter(os.fspath(path)) as writer:
            for records, skipped_here in encoded:
                skipped += [[item.where, item.reason] for item in skipped_here]
                counts["videos"] += bool(records)
                for record in records:
                    # Once more, for protobuf's order of the fields differs from one process to the next.
                    example = tf.train.Example.FromString(kind.serialize_example(record))
                    writer.write(example.SerializeToString(deterministic=True))
                    counts["frame_pairs"] += 1
                    counts["instances"] += len(record["instances"])
                    counts["sentences"] += len(record["sentences"])
                    lengths[str(len(record["sentences"]))] += 1
                    rules[record["earlier_rule"]] += 1
                    for sentence in record["sentences"]:
                        counts["without_truth"] += sentence["instance"] == NO_INSTANCE
                        groups[sentence["group"]] += 1
                        tokens.update(tokenize(sentence["text"], max_words=len(sentence["text"])))
    except tf.errors.OpError as error:
        raise UserError(
            f"{path} can't be written: {error.message}. Make room, or choose another data_dir. Started again, the same "
            "command goes on."
        ) from error
    shard = {"counts": counts, "rules": rules, "groups": groups, "lengths": lengths}
    return shard | {"skipped": skipped, "tokens": sorted(tokens), "bytes": path.stat().st_size}


def _describe(folder: Path, dataset: str, shards: dict[str, list[Shard]]) -> None:
    """Writes what TensorFlow Datasets wants to know of the records."""
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, template=FILES, dataset_name=dataset, filetype_suffix="tfrecord"
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard["counts"].get("frame_pairs", 0) for shard in of_split],
            num_bytes=sum(shard["bytes"] for shard in of_split),
            filename_template=template.replace(split=split),
        )
        for split, of_split in shards.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features(),
        split_infos=splits,
        version=VERSION,
        filename_template=template,
        description="Frame pairs with the masks of their instances and the sentences that refer to them.",
    )


def _write_json(value: Any, path: Path) -> None:
    """Whole or not at all."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(value), "utf-8")
    os.replace(unfinished, path)


def _keep_reader(reader: Any) -> None:
    """In a worker, once: the reader holds all sentences, too much to send with every task."""
    global _reader
    _reader = reader


def _encode_video(video: str) -> tuple[list[Record], list[Skipped]]:
    """In a worker: the records of a video, and what was left out."""
    records, skipped = [], []
    for item in _reader.read(video):
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            records.append(encode_record(item))
    return records, skipped


def _encode_in_parallel(
    pool: Executor, videos: list[str], split: str, progress: tqdm
) -> Iterator[tuple[list[Record], list[Skipped]]]:
    """`_encode_video` of all videos in their order, never more than a few videos ahead of the writer."""
    waiting = deque(pool.submit(_encode_video, video) for video in videos[: 4 * cores()])
    remaining = iter(videos[4 * cores() :])
    try:
        for video in videos:  # noqa: B007  the message needs it
            encoded = waiting.popleft().result()
            waiting.extend(pool.submit(_encode_video, later) for later in itertools.islice(remaining, 1))
            progress.update()
            yield encoded
    except BrokenProcessPool as error:
        raise UserError(
            f"A process that read the videos of split {split!r} died at or soon after {video}. Out of memory, or a "
            "file that crashes its decoder: look at the files of these videos."
        ) from error
