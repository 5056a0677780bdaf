"""Raw files are written as records; reports on broken files; interrupted runs; messages of the command."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_datasets import HEIGHT, WIDTH, box, write_a2d, write_clip, write_h5, write_lbdt_layout
from ml_collections import ConfigDict
from paths import ROOT

from input_pipeline import record_writer, resized
from input_pipeline.errors import UserError
from input_pipeline.images import decode_frame, decode_mask
from input_pipeline.prepare import main, prepare
from input_pipeline.readers.a2d_sentences import A2DSentences
from input_pipeline.readers.lbdt_layout import LBDTLayoutA2D
from input_pipeline.record_dataset import read_records, record_parser
from input_pipeline.records import encode_record
from input_pipeline.report import VERSION, load_report, records_dir, records_exist

MASKS = "text_annotations/a2d_annotation_with_instances"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A small A2D-Sentences to modify."""
    return write_a2d(tmp_path / "raw")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small A2D-Sentences and the data_dir with its records. Tests must not change either."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare("a2d_sentences", write_a2d(folder / "raw"), folder / "data")
    return folder / "raw", folder / "data"


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of all files."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_record_holds_frames_and_masks(prepared: tuple[Path, Path]) -> None:
    pair = next(iter(A2DSentences(prepared[0]).read("walker")))
    record = encode_record(pair)
    assert (record["video"], record["frame_index"], record["height"], record["width"]) == ("walker", 1, HEIGHT, WIDTH)
    decoded = decode_frame(record["frame"]).astype(int)
    assert np.abs(decoded - pair.frame).mean() < 1.5
    for instance in record["instances"]:
        np.testing.assert_array_equal(decode_mask(instance["mask"]), pair.masks[instance["id"]])


def test_frames_from_files_keep_their_bytes(tmp_path: Path) -> None:
    raw = write_lbdt_layout(tmp_path / "datasets") / "a2d"
    pair = next(iter(LBDTLayoutA2D(raw).read("Cat_-1")))
    record = encode_record(pair)
    assert record["frame"] == (raw / f"images/Cat_-1/{pair.frame_index:05d}.jpg").read_bytes()
    assert record["earlier_frame"] in [path.read_bytes() for path in (raw / "images/Cat_-1").iterdir()]
    np.testing.assert_array_equal(decode_frame(record["frame"]), pair.frame)
    np.testing.assert_array_equal(decode_frame(record["earlier_frame"]), pair.earlier_frame)


def test_report_and_printed_summary(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(raw)
    assert not records_exist(tmp_path / "data", "a2d_sentences")
    report = prepare("a2d_sentences", raw, tmp_path / "data", interval=10)
    train = report["splits"]["train"]
    assert {key: train[key] for key in ("videos", "frame_pairs", "instances", "sentences")} == {
        "videos": 2,
        "frame_pairs": 4,
        "instances": 6,
        "sentences": 6,
    }
    assert train["earlier_frames"] == {"first frame": 1, "index - 6": 1, "interval": 2}
    words = "the man in red walking left woman standing still a dog that runs cat is jumping".split()
    assert report["tokens"] == sorted({*words, "  ", ", "})
    assert (
        records_exist(tmp_path / "data", "a2d_sentences") and load_report(tmp_path / "data", "a2d_sentences") == report
    )
    printed = capsys.readouterr().out
    assert "4 sentences of 6655 in the full dataset" in printed
    assert "1 x the instance is not a whole number" in printed
    assert contents(raw) == before
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a2d_sentences"]


def test_records_are_reproducible(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    raw, data_dir = prepared
    prepare("a2d_sentences", raw, tmp_path / "second")
    first, second = contents(data_dir), contents(tmp_path / "second")
    assert first == second and any("tfrecord" in name for name in first)


def test_existing_records_are_left_alone(
    prepared: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, data_dir = prepared
    before = contents(data_dir)
    capsys.readouterr()
    assert prepare("a2d_sentences", tmp_path / "gone", data_dir) == load_report(data_dir, "a2d_sentences")
    printed = capsys.readouterr().out
    assert (
        "The records of a2d_sentences exist" in printed
        and "delete that folder" in printed.lower()
        and "6 sentences" in printed
    )
    with pytest.raises(UserError, match="made with interval 6, not 3. Delete that folder"):
        prepare("a2d_sentences", raw, data_dir, interval=3)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=f"made from {raw}, not from {tmp_path / 'other'}. Delete that folder"):
        prepare("a2d_sentences", tmp_path / "other", data_dir)
    assert contents(data_dir) == before

    (tmp_path / "link").symlink_to(raw)
    shutil.copytree(data_dir, tmp_path / "copied")
    path = records_dir(tmp_path / "copied", "a2d_sentences") / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"raw": "on/another/machine"}))
    for given, records in (("", data_dir), (tmp_path / "link", data_dir), (tmp_path / "other", tmp_path / "copied")):
        assert prepare("a2d_sentences", given, records)["splits"]


def test_all_kinds_of_broken_raw_data_are_reported(raw: Path, tmp_path: Path) -> None:
    with (raw / "text_annotations/a2d_annotation.txt").open("a") as file:
        file.write("walker;0;no commas\n../../x,0,leaves\nstranger,0,unknown\nwalker,0,\n")
        file.writelines(f"{video},0,a bird\n" for video in ("cut", "gone", "short", "plain", "torn", "large"))
        file.write("Cat_-1,2," + "very " * 2000 + "fat\n")
    with (raw / "Release/videoset.csv").open("a") as file:
        file.writelines(
            f"{video},31,0,0,48,64,16,1,0\n" for video in ("cut", "gone", "short", "plain", "torn", "large")
        )
        file.write("half a line\n")
    clips = raw / "Release/clips320H"
    for video in ("cut", "plain", "torn", "large"):
        write_clip(clips / f"{video}.mp4")
    write_clip(clips / "short.mp4", length=5)
    (clips / "cut.mp4").write_bytes((clips / "cut.mp4").read_bytes()[:1500])
    for video in ("cut", "gone", "short", "torn"):
        write_h5(raw / MASKS / video / "00009.h5", [0], [box(4, 4)])
    write_h5(raw / MASKS / "large/00009.h5", [0], [np.ones((HEIGHT + 2, WIDTH), bool)])
    (raw / MASKS / "torn/00009.h5").write_bytes(b"\x89HDF\r\n\x1a\n nonsense")

    report = prepare("a2d_sentences", raw, tmp_path / "data")
    assert {reason: len(locations) for reason, locations in report["skipped_lines"].items()} == {
        "malformed line of videoset.csv": 1,
        "malformed line of a2d_annotation.txt": 1,
        "the video's name is not a plain file name": 1,
        "video is not in videoset.csv": 1,
        "the instance is not a whole number": 1,
        "empty sentence": 1,
    }
    skipped = report["splits"]["train"]["skipped"]
    assert {reason: len(locations) for reason, locations in skipped.items()} == {
        "the clip is damaged or ends before the frame": 2,
        "clip missing": 1,
        "no h5 file for the video": 1,
        "the h5 file can't be read": 1,
        "the mask and the frame differ in size": 1,
        "the instance is not in the frame": 1,
    }
    for reason, locations in [*skipped.items(), *report["skipped_lines"].items()]:
        assert all(str(raw) in location for location in locations), reason
    assert report["splits"]["train"]["sentences"] == 6
    assert report["splits"]["test"]["sentences"] == 2


def test_a_split_without_frame_pairs_is_an_error_until_it_is_repaired(raw: Path, tmp_path: Path, capsys) -> None:
    clip = raw / "Release/clips320H/Cat_-1.mp4"
    content = clip.read_bytes()
    clip.write_bytes(content[:100])
    with pytest.raises(
        UserError, match="(?s)no frame pair of split 'test' could be read.*1 x the clip is damaged .*, first"
    ):
        prepare("a2d_sentences", raw, tmp_path / "data")
    assert not records_exist(tmp_path / "data", "a2d_sentences")
    clip.write_bytes(content)
    assert prepare("a2d_sentences", raw, tmp_path / "data")["splits"]["test"]["sentences"] == 1
    assert "train: resuming after 2 of 2 videos" in capsys.readouterr().out


def test_a_killed_run_is_resumed(raw: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    data = tmp_path / "data"
    program = (
        "import os\n"
        "from input_pipeline import prepare, record_writer\n"
        "if __name__ == '__main__':\n"
        "    record_writer.VIDEOS_PER_SHARD, tokenize = 1, record_writer.tokenize\n"
        # dies in the second of the two training videos, as by kill -9
        "    def die(text, max_words): return os._exit(9) if 'man' in text else tokenize(text, max_words)\n"
        "    record_writer.tokenize = die\n"
        f"    prepare.prepare('a2d_sentences', {str(raw)!r}, {str(data)!r})\n"
    )
    script = tmp_path / "dies.py"
    script.write_text(program)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    died = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert died.returncode == 9, died.stderr
    assert not records_exist(data, "a2d_sentences")
    with pytest.raises(UserError, match="No records"):
        load_report(data, "a2d_sentences")
    (first,) = data.glob("*/*/*train*00000-of-00002")
    inode = first.stat().st_ino

    monkeypatch.setattr("input_pipeline.record_writer.VIDEOS_PER_SHARD", 1)
    prepare("a2d_sentences", raw, data)
    assert "train: resuming after 1 of 2 videos" in capsys.readouterr().out
    (first,) = data.glob("*/*/*train*00000-of-00002")
    assert first.stat().st_ino == inode
    prepare("a2d_sentences", raw, tmp_path / "uninterrupted")
    assert contents(data) == contents(tmp_path / "uninterrupted")


def test_a_run_starts_over_if_raw_data_have_changed(raw: Path, tmp_path: Path, capsys) -> None:
    """A single word of a sentence changes after a run that stopped after the training split."""
    sentences, clip = raw / "text_annotations/a2d_annotation.txt", raw / "Release/clips320H/Cat_-1.mp4"
    content = clip.read_bytes()
    clip.write_bytes(content[:100])
    with pytest.raises(UserError, match="no frame pair of split 'test'"):
        prepare("a2d_sentences", raw, tmp_path / "data")
    clip.write_bytes(content)
    sentences.write_text(sentences.read_text().replace("dog", "fox"))
    report = prepare("a2d_sentences", raw, tmp_path / "data")
    assert "resuming" not in capsys.readouterr().out
    assert "fox" in report["tokens"] and "dog" not in report["tokens"]


def rewrite_mask(raw: Path) -> None:
    write_h5(raw / MASKS / "walker/00012.h5", [1], [box(20, 30)])


def replace_file_of_the_same_size(raw: Path) -> None:
    path = raw / MASKS / "walker/00012.h5"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def add_mask(raw: Path) -> None:
    write_h5(raw / MASKS / "walker/00009.h5", [1], [box(30, 16)])


def remove_clip(raw: Path) -> None:
    (raw / "Release/clips320H/walker.mp4").unlink()
    (raw / "Release/clips320H/walker.mp4").mkdir()


@pytest.mark.parametrize("change", [rewrite_mask, replace_file_of_the_same_size, add_mask, remove_clip])
def test_shards_are_written_again_if_their_files_have_changed(
    raw: Path, tmp_path: Path, monkeypatch, capsys, change: Callable[[Path], object]
) -> None:
    monkeypatch.setattr("input_pipeline.record_writer.VIDEOS_PER_SHARD", 1)
    clip = raw / "Release/clips320H/Cat_-1.mp4"
    content = clip.read_bytes()
    clip.write_bytes(content[:100])
    with pytest.raises(UserError, match="no frame pair of split 'test'"):
        prepare("a2d_sentences", raw, tmp_path / "data")
    clip.write_bytes(content)
    change(raw)
    # As if killed while writing it again: what is left of the old shard is never taken for a complete one.
    write_json, killed = record_writer.write_json, []

    def kill(value: object, path: Path) -> None:
        if not killed:
            killed.append(path)
            raise KeyboardInterrupt
        write_json(value, path)

    monkeypatch.setattr(record_writer, "write_json", kill)
    with pytest.raises(KeyboardInterrupt):
        prepare("a2d_sentences", raw, tmp_path / "data")
    assert not killed[0].exists()
    prepare("a2d_sentences", raw, tmp_path / "data")
    assert capsys.readouterr().out.count("train: resuming after 1 of 2 videos") == 2
    prepare("a2d_sentences", raw, tmp_path / "fresh")
    assert contents(tmp_path / "data") == contents(tmp_path / "fresh")


@pytest.mark.parametrize("folder", ["data/a2d_sentences", "data", "data/a2d_sentences/clips", "link"])
def test_raw_data_where_records_go_are_refused(raw: Path, tmp_path: Path, folder: str) -> None:
    moved = tmp_path / folder.replace("link", "data/a2d_sentences")
    moved.parent.mkdir(parents=True, exist_ok=True)
    raw.rename(moved)
    (tmp_path / "link").symlink_to(moved)
    before = contents(moved)
    with pytest.raises(UserError, match="must not lie in one another(?s:.*)Move the raw data, or choose another data"):
        prepare("a2d_sentences", tmp_path / folder, tmp_path / "data")
    assert contents(moved) == before


def test_incomplete_records_are_left_alone(raw: Path, tmp_path: Path) -> None:
    folder = records_dir(tmp_path / "data", "a2d_sentences")
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=f"{folder} exists but does not hold complete records"):
        prepare("a2d_sentences", raw, tmp_path / "data")
    assert contents(tmp_path / "data") == {"a2d_sentences/2.0.0/notes.txt": b"mine"}


def test_error_when_the_disk_is_full(raw: Path, tmp_path: Path, monkeypatch) -> None:
    """TensorFlow's error from a device that is always full."""
    (tmp_path / "data").mkdir()
    import tensorflow as tf

    writer = tf.io.TFRecordWriter
    monkeypatch.setattr(tf.io, "TFRecordWriter", lambda path: writer("/dev/full"))
    with pytest.raises(
        UserError, match=r"-00000-of-00001 can't be written: .*[Nn]o space.* the same command again: it resumes"
    ):
        prepare("a2d_sentences", raw, tmp_path / "data")


def test_resizing_is_resumed_and_needs_an_index(raw: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("input_pipeline.record_writer.VIDEOS_PER_SHARD", 1)
    data, size = tmp_path / "data", (32, 32)
    prepare("a2d_sentences", raw, data)
    shutil.copytree(data, tmp_path / "uninterrupted")
    prepare("a2d_sentences", raw, tmp_path / "uninterrupted", image_size=size)
    folder = records_dir(data, "a2d_sentences")

    write_json, written = resized.write_json, []

    def interrupt(value: object, path: Path) -> None:
        if written:
            raise KeyboardInterrupt
        write_json(value, path)
        written.append(path)

    monkeypatch.setattr(resized, "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare("a2d_sentences", raw, data, image_size=size)
    assert not (folder / "resized_32x32").exists()
    (first,) = (folder / "resized_32x32.unfinished").glob("*-00000-of-00002")
    inode = first.stat().st_ino
    # As after a power failure: the second file's summary is there, and empty.
    (first.parent / f"{first.name.replace('-00000-', '-00001-')}.counts.json").touch()
    monkeypatch.setattr(resized, "write_json", write_json)
    prepare("a2d_sentences", raw, data, image_size=size)
    assert (folder / "resized_32x32" / first.name).stat().st_ino == inode
    assert contents(data) == contents(tmp_path / "uninterrupted")

    (folder / "index.json").unlink()
    with pytest.raises(UserError, match="were made by an earlier version. To add resized images, delete that folder"):
        prepare("a2d_sentences", raw, data, image_size=(64, 64))


def test_two_processes_do_not_write_the_same_records(raw: Path, tmp_path: Path) -> None:
    unfinished = records_dir(tmp_path / "data", "a2d_sentences").with_name("2.0.0.unfinished")
    unfinished.mkdir(parents=True)
    descriptor = os.open(unfinished, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="Another process is writing to"):
        prepare("a2d_sentences", raw, tmp_path / "data")
    os.close(descriptor)


@pytest.mark.parametrize(
    "dataset, folder, split", [("a2d_sentences", "a2d", "test"), ("jhmdb_sentences", "jhmdb", "test")]
)
def test_the_layout_of_lbdt_is_recognized(dataset: str, folder: str, split: str, tmp_path: Path) -> None:
    raw = write_lbdt_layout(tmp_path / "datasets") / folder
    report = prepare(dataset, raw, tmp_path / "data")
    assert report["splits"][split]["sentences"] == len((raw / "val.txt").read_text().splitlines())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda report: json.dumps(report)[:-3], ""),
        (lambda report: "[" * 100_000, ""),
        (lambda report: [], "the report is not an object"),
        (lambda report: {}, "the report has no valid 'dataset'"),
        (lambda report: report | {"interval": "6"}, "the report has no valid 'interval'"),
        (lambda report: report | {"tokens": [1]}, "the report has no valid 'tokens'"),
        (lambda report: report | {"splits": {"train": {}}}, "split 'train' has no valid 'videos'"),
        (
            lambda report: report["splits"]["train"].update(sentences_per_frame_pair={"x": 1}) or report,
            "split 'train' has no valid 'sentences_per_frame_pair'",
        ),
        (lambda report: report | {"resized": {"32x32": 1}}, "resized '32x32' is not an object"),
    ],
)
def test_error_when_the_report_is_damaged(
    prepared: tuple[Path, Path], tmp_path: Path, change: Callable[[dict], object], reason: str
) -> None:
    shutil.copytree(prepared[1], tmp_path / "data")
    path = records_dir(tmp_path / "data", "a2d_sentences") / "report.json"
    content = change(json.loads(path.read_text()))
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=rf"report.json can't be read \({reason}.* Delete"):
        load_report(tmp_path / "data", "a2d_sentences")


@pytest.mark.parametrize(
    ("file", "content"),
    [("dataset_info.json", ""), ("dataset_info.json", "{}"), ("features.json", ""), ("features.json", None)],
)
def test_error_when_the_files_of_tfds_are_damaged(
    prepared: tuple[Path, Path], tmp_path: Path, file: str, content: str | None
) -> None:
    folder = shutil.copytree(prepared[1], tmp_path / "data") / "a2d_sentences" / VERSION
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    config = ConfigDict({"data_dir": str(tmp_path / "data"), "dataset": "a2d_sentences"})
    message = f"dataset_info.json or features.json can't be read (?s:.*) Delete {folder} and make the records again"
    with pytest.raises(UserError, match=message):
        next(read_records(config, "train", 0, 1))
    with pytest.raises(UserError, match=message):
        record_parser(config)({})


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--dataset=a2d", "--raw=x"], "Unknown dataset 'a2d'. Choose one of a2d_sentences"),
        (["--dataset=a2d_sentences", "--raw=/does/not/exist"], "jjcorso"),
        (["--dataset=a2d_sentences", "--raw=x", "--intervall=2"], "unrecognized arguments: --intervall=2"),
        (["--dataset=a2d_sentences", "--raw=x", "--interval=0"], "at least 1 frame"),
        (["--dataset=a2d_sentences"], "raw/a2d_sentences lacks Release/videoset.csv"),
        (["--dataset=a2d_sentences", "--raw=x", "--image_size=320"], "give HEIGHTxWIDTH in pixels"),
        (["--dataset=a2d_sentences", "--raw=x", "--image_size=320x100"], "multiples of 32 up to 4096"),
        (["--raw=x"], "the following arguments are required: --dataset"),
    ],
)
def test_messages_of_the_command(monkeypatch, capsys, tmp_path: Path, arguments: list[str], message: str) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments, f"--data_dir={tmp_path}"])
    with pytest.raises(SystemExit) as exit_status:
        main()
    assert exit_status.value.code == 2
    assert message in capsys.readouterr().err


def test_path_that_is_no_text(raw: Path, tmp_path: Path) -> None:
    """TensorFlow can't write to it."""
    with pytest.raises(UserError, match="not UTF-8 text. Choose another data_dir"):
        prepare("a2d_sentences", raw, tmp_path / "\udcff")
    assert not list(tmp_path.glob("\udcff*"))


def test_the_command(raw: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "input_pipeline.prepare", "--dataset=a2d_sentences", f"--raw={raw}"]
        + [f"--data_dir={tmp_path / 'data'}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    assert "train: 2 videos, 4 frame pairs" in run.stdout


@pytest.mark.parametrize(("signal_number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_is_stopped(tmp_path: Path, signal_number: int, status: int) -> None:
    process = subprocess.Popen(
        # SIGINT is ignored if the tests run in the background.
        ["env", "--default-signal=INT", sys.executable, "-m", "input_pipeline.prepare", "--dataset=moving_shapes"]
        + [f"--data_dir={tmp_path}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    end = time.monotonic() + 300
    while len(list(tmp_path.glob("raw/*.incomplete*/**/*"))) < 40 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)  # until all workers generate scenes
    process.send_signal(signal_number)
    try:
        _, errors = process.communicate(timeout=300)  # workers hold the pipes until they end
    finally:
        process.kill()
    # A worker that is only starting may add a traceback of multiprocessing.
    assert process.returncode == status and "Interrupted. The same command continues" in errors, errors
    assert "leaked" not in errors and not list(tmp_path.glob("raw/*"))
