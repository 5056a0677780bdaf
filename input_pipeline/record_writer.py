"""Writes the records of a dataset: any reader -> sharded TFRecord files and a report.

Videos are read in parallel and assigned to shards by a fixed rule, and shards are written one after the other into a
folder that is renamed when all are complete. An interrupted run therefore resumes after its last complete shard, and
the bytes depend neither on interruptions nor on the number of processes. Shards are written again if a raw file that
they were made from has changed since. The report, report.json, holds counts, everything that was skipped with its
reason, and all tokens of the sentences.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from input_pipeline.errors import UserError
from input_pipeline.files import Fingerprint, fingerprint, record_files
from input_pipeline.record_index import INDEX_FILE, IndexEntry, index_entry
from input_pipeline.records import NO_INSTANCE, Record, encode_record, record_features
from input_pipeline.report import VERSION, ShardSummary, format_skipped, load_report, make_report, records_dir
from input_pipeline.text.tokenizer import tokenize
from input_pipeline.types import Reader, Skipped
from input_pipeline.workers import cores, worker_pool

#: An interrupted run repeats at most one shard. Training shuffles the order of shards and interleaves them.
VIDEOS_PER_SHARD = 64

FILE_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"

#: The records of one video, what had to be skipped, and the files that were read.
EncodedVideo = tuple[list[Record], list[Skipped], dict[str, Fingerprint]]

# TensorFlow only reads and writes bytes here: show its errors, not its messages about the processor.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def write_records(dataset: str, reader: Reader, data_dir: str | Path, layout: str) -> dict[str, Any]:
    """Reads a raw dataset with one process per core and writes its records and report.

    Args:
      dataset: name of the dataset, and of its folder in `data_dir`.
      reader: of the raw data.
      data_dir: folder with the records of all datasets.
      layout: of the raw data, for the report; see `load_report`.

    Returns:
      The report, as `load_report` returns it.

    Raises:
      UserError: raw data are missing, no frame pair of a split could be read, another process is writing the same
        records, or the disk is full.
    """
    splits = {split: _shuffle_videos(split, reader.videos(split)) for split in reader.splits()}
    if not splits:
        raise UserError(f"{reader.raw} has no split with a sentence.\n{format_skipped(reader.skipped())}")
    for split, videos in splits.items():
        if not videos:
            raise UserError(
                f"{reader.raw}: no video of split {split!r} has a sentence.\n{format_skipped(reader.skipped())}"
            )
    folder = records_dir(data_dir, dataset)
    if folder.exists():
        raise UserError(f"{folder} exists but does not hold complete records. Move it away.")
    unfinished = folder.with_name(f"{VERSION}.unfinished")
    with locked_output_dir(unfinished, _plan(dataset, reader, splits)):
        summaries = {}
        with worker_pool(initializer=_set_reader, initargs=(reader,)) as pool:
            for split, videos in splits.items():
                summaries[split] = _write_split(unfinished, dataset, split, videos, pool)
                if not any(shard["counts"].get("frame_pairs") for shard in summaries[split]):
                    for file in unfinished.glob(f"{dataset}-{split}.*"):  # so that the next run reads it again
                        file.unlink()
                    skipped = [Skipped(*item) for shard in summaries[split] for item in shard["skipped"]]
                    raise UserError(
                        f"{reader.raw}: no frame pair of split {split!r} could be read.\n{format_skipped(skipped)}"
                    )
        report = make_report(dataset, reader, layout, summaries)
        (unfinished / "report.json").write_text(json.dumps(report, indent=1), "utf-8")
        write_index(unfinished, summaries)
        _write_tfds_metadata(unfinished, dataset, summaries)
        os.replace(unfinished, folder)
        for file in [folder / "plan.json", *folder.glob("*.counts.json")]:
            file.unlink()
    return load_report(data_dir, dataset)


def _shuffle_videos(split: str, videos: list[str]) -> list[str]:
    """Sorts videos by a checksum of their names: neighbors in alphabetical order often look alike."""
    return sorted(videos, key=lambda video: (zlib.crc32(f"{split}/{video}".encode()), video))


def _plan(dataset: str, reader: Reader, splits: dict[str, list[str]]) -> dict[str, Any]:
    """Everything except images and masks that the shards depend on: a run only resumes shards of the same plan."""
    reader.skipped()  # together with inventory(), makes the reader cache all its annotation files in vars(reader)
    content = repr((splits, reader.inventory(), vars(reader), VIDEOS_PER_SHARD, IndexEntry._fields))
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
    return {"dataset": dataset, "raw": str(reader.raw), "interval": reader.interval, "digest": digest}


@contextlib.contextmanager
def locked_output_dir(unfinished: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Creates and locks the folder to write to. Keeps what an interrupted run left there if it had the same plan.

    Raises:
      UserError: another process is writing there.
    """
    unfinished.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(unfinished, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the system if this process dies
        except BlockingIOError as error:
            raise UserError(f"Another process is writing to {unfinished}. Wait for it, or stop it.") from error
        path = unfinished / "plan.json"
        if not path.exists() or path.read_bytes() != json.dumps(plan).encode():
            for file in unfinished.iterdir():
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            path.write_text(json.dumps(plan), "utf-8")
        yield
    finally:
        os.close(descriptor)


def _write_split(folder: Path, dataset: str, split: str, videos: list[str], pool: Executor) -> list[ShardSummary]:
    """Writes the shards of a split that are not up to date. Returns the summaries of all its shards."""
    shards = [videos[start : start + VIDEOS_PER_SHARD] for start in range(0, len(videos), VIDEOS_PER_SHARD)]
    files = [folder / f"{dataset}-{split}.tfrecord-{index:05d}-of-{len(shards):05d}" for index in range(len(shards))]
    remaining = [index for index, file in enumerate(files) if not _is_up_to_date(file)]
    to_read = [video for index in remaining for video in shards[index]]
    finished = len(videos) - len(to_read)
    if finished:
        print(f"{split}: resuming after {finished} of {len(videos)} videos.")
    with tqdm(total=len(videos), initial=finished, desc=f"{split} videos", unit="") as progress:
        encoded = _encode_in_parallel(pool, to_read, split, progress)
        for index in remaining:
            _write_shard(files[index], itertools.islice(encoded, len(shards[index])))
    return complete_summaries(files)


def summary_file(file: Path) -> Path:
    """The file that is written after a file of records is complete."""
    return file.with_name(f"{file.name}.counts.json")


def complete_summaries(files: Sequence[Path]) -> list[Any]:
    """The summaries of files of records, up to the first file that is not complete.

    A summary that can't be read, as after a power failure, counts as none: its file of records is written again.
    """
    summaries = []
    for file in files:
        try:
            summaries.append(json.loads(summary_file(file).read_bytes()))
        except (FileNotFoundError, ValueError):
            break
    return summaries


def _is_up_to_date(file: Path) -> bool:
    """Whether a shard is complete, and the raw files that it was made from are as they were."""
    for summary in complete_summaries([file]):
        files = summary.get("files")  # absent if an earlier version wrote it
        return files is not None and all(fingerprint(path) == before for path, before in files.items())
    return False


def _write_shard(path: Path, encoded_videos: Iterable[EncodedVideo]) -> None:
    """Writes the records of some videos to one file, then its summary. Raises UserError if TensorFlow can't write."""
    import tensorflow as tf  # slow to import, and not needed by the workers that encode records

    feature_spec = record_features()
    counts: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    groups: Counter[str] = Counter()
    lengths: Counter[str] = Counter()
    skipped: list[list[str]] = []
    entries: list[IndexEntry] = []
    tokens: set[str] = set()
    files: dict[str, Fingerprint] = {}
    summary_file(path).unlink(missing_ok=True)  # of a shard that is written again
    try:
        with tf.io.TFRecordWriter(os.fspath(path)) as writer:
            for records, skipped_in_video, files_of_video in encoded_videos:
                files |= files_of_video
                skipped += [[item.where, item.reason] for item in skipped_in_video]
                counts["videos"] += bool(records)
                for record in records:
                    # Serialized again deterministically: protobuf orders map fields differently in each process.
                    example = tf.train.Example.FromString(feature_spec.serialize_example(record))
                    data = example.SerializeToString(deterministic=True)
                    writer.write(data)
                    entries.append(index_entry(data, len(record["sentences"])))
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
            f"{path} can't be written: {error.message}. Free some space or choose another data_dir, then run the same "
            "command again: it resumes."
        ) from error
    summary: ShardSummary = {
        "counts": counts,
        "rules": rules,
        "groups": groups,
        "lengths": lengths,
        "skipped": skipped,
        "tokens": sorted(tokens),
        "index": entries,
        "bytes": path.stat().st_size,
        "files": files,
    }
    write_json(summary, summary_file(path))


def write_index(folder: Path, summaries: Mapping[str, list[ShardSummary]]) -> None:
    """Writes the index of all splits, see `record_index`."""
    index = {split: [shard["index"] for shard in shards] for split, shards in summaries.items()}
    write_json(index, folder / INDEX_FILE)


def _write_tfds_metadata(folder: Path, dataset: str, summaries: dict[str, list[ShardSummary]]) -> None:
    """Writes the files with which TensorFlow Datasets opens the folder."""
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, template=FILE_TEMPLATE, dataset_name=dataset, filetype_suffix="tfrecord"
    )
    split_infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard["counts"].get("frame_pairs", 0) for shard in shards],
            num_bytes=sum(shard["bytes"] for shard in shards),
            filename_template=template.replace(split=split),
        )
        for split, shards in summaries.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=record_features(),
        split_infos=split_infos,
        version=VERSION,
        filename_template=template,
        description="Frame pairs with the masks of their instances and the sentences that refer to them.",
    )


def write_json(value: Any, path: Path, indent: int | None = None) -> None:
    """Writes a JSON file atomically."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(value, indent=indent), "utf-8")
    os.replace(unfinished, path)


# -- in the worker processes

_reader: Reader


def _set_reader(reader: Reader) -> None:
    """Stores the reader once per worker: it holds all sentences, too much to send with every task."""
    global _reader
    _reader = reader


def _encode_video(video: str) -> EncodedVideo:
    """Reads a video and encodes its records. What can't be read is reported, and the other videos go on."""
    records, skipped = [], []
    with record_files() as files:
        try:
            for item in _reader.read(video):
                if isinstance(item, Skipped):
                    skipped.append(item)
                else:
                    records.append(encode_record(item))
        except (UserError, OSError, MemoryError) as error:
            reason = f"the rest of the video can't be read ({type(error).__name__})"
            skipped.append(Skipped(f"{_reader.raw}: video {video}: {error}", reason))
    return records, skipped, files


def _encode_in_parallel(pool: Executor, videos: list[str], split: str, progress: tqdm) -> Iterator[EncodedVideo]:
    """Yields `_encode_video` of all videos in order, computed at most a few videos ahead of the consumer."""
    to_submit = iter(videos)
    futures = deque(pool.submit(_encode_video, video) for video in itertools.islice(to_submit, 4 * cores()))
    for video in videos:
        try:
            encoded = futures.popleft().result()
            futures.extend(pool.submit(_encode_video, next_video) for next_video in itertools.islice(to_submit, 1))
        except BrokenProcessPool as error:
            raise UserError(
                f"A process that read the videos of split {split!r} died at or soon after {video}. Either memory ran "
                "out, or a file crashes its decoder: check the files of these videos."
            ) from error
        progress.update()
        yield encoded
