"""The command segments a video and writes all its files (lbdt_jax/predict.py)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from clips import SENTENCES, numbered_frame, read_frames, tiny_checkpoint, tiny_segmenter, write_clip
from paths import ROOT
from PIL import Image
from pycocotools import mask as coco_mask

from input_pipeline.errors import UserError
from input_pipeline.images import decode_mask
from lbdt_jax import predict as command
from lbdt_jax.checkpoint import load_checkpoint, save_weights
from lbdt_jax.inference.segmenter import Segmentation, Segmenter, TimedFramePair
from lbdt_jax.predict import PredictionSettings, arguments, describe_model, predict
from lbdt_jax.visualization import video_strip

pytestmark = pytest.mark.usefixtures("fast_compilation")


def settings(video: Path, **options: object) -> PredictionSettings:
    return PredictionSettings("tiny", str(video), SENTENCES, **options)


def read_lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "masks.jsonl").read_text().splitlines()]


def test_writes_all_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = write_clip(tmp_path / "a.mp4", times=[0, 1, 2, 6, 7, 20, 21, 22, 40, 41])
    output, segmenter = tmp_path / "output", tiny_segmenter()
    predict(segmenter, settings(video), output, explain_frames=[3])
    lines = read_lines(output)
    assert [(line["frame"], line["sentence"]) for line in lines] == [(f, s) for f in range(10) for s in (1, 2)]

    # All files hold the masks that the library returns.
    expected = list(segmenter.segment_frame_pairs(segmenter.frame_pairs(read_frames(video)), SENTENCES))
    assert len(expected) == 10
    for line in lines:
        segmentation, sentence = expected[line["frame"]], line["sentence"]
        mask = segmentation.masks[sentence - 1]
        np.testing.assert_array_equal(coco_mask.decode(line["segmentation"]).astype(bool), mask)
        png = (output / "masks" / str(sentence) / f"{line['frame']:06d}.png").read_bytes()
        np.testing.assert_array_equal(decode_mask(png), mask)
        assert line["confidence"] == pytest.approx(float(segmentation.scores[sentence - 1]), abs=1e-6)
        assert line["time"] == pytest.approx(segmentation.frame_pair.time, abs=1e-6)

    # Each frame of the overlay shows its own frame, at the same time.
    overlay = read_frames(output / "overlay.mp4")
    assert [time for time, _ in overlay] == pytest.approx([s.frame_pair.time for s in expected], abs=1e-4)
    drawn = [
        video_strip.draw_segmentation(s.frame_pair.frame.original, s.masks, SENTENCES).astype(int) for s in expected
    ]
    for index, (_, frame) in enumerate(overlay):
        assert np.argmin([np.abs(frame - candidate).mean() for candidate in drawn]) == index

    for name in ("contact_sheet.png", "explain/000003-1.png", "explain/000003-2.png"):
        with Image.open(output / name) as sheet:
            assert sheet.width > 1000
    assert json.loads((output / "settings.json").read_text())["text"] == list(SENTENCES)
    printed = capsys.readouterr().out
    assert "10 frames" in printed and "model" in printed and "'a black cat': mean confidence" in printed


def test_every_start_and_end_select_frames(tmp_path: Path) -> None:
    video, segmenter = write_clip(tmp_path / "a.mp4", frames=20), tiny_segmenter()
    predict(segmenter, settings(video, every=2, start=3 / 24, end=12 / 24), tmp_path / "output")
    lines = read_lines(tmp_path / "output")
    assert [line["frame"] for line in lines[::2]] == [4, 6, 8, 10, 12]
    # Frames that are left out still serve as earlier frames.
    all_frames = list(segmenter.segment_frame_pairs(segmenter.frame_pairs(read_frames(video)), SENTENCES))
    for line in lines:
        expected = all_frames[line["frame"]].masks[line["sentence"] - 1]
        np.testing.assert_array_equal(coco_mask.decode(line["segmentation"]).astype(bool), expected)
    times = [time for time, _ in read_frames(tmp_path / "output" / "overlay.mp4")]
    assert times == pytest.approx([line["time"] for line in lines[::2]], abs=1e-3)
    with pytest.raises(UserError, match="no frame between"):
        predict(segmenter, settings(video, start=9.0), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_killed_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video, segmenter = write_clip(tmp_path / "a.mp4"), tiny_segmenter()
    run, output = settings(video), tmp_path / "output"
    predict(segmenter, run, output)
    complete = (output / "masks.jsonl").read_bytes()
    with pytest.raises(UserError, match="Nothing is overwritten"):
        predict(segmenter, run, output)
    assert (output / "masks.jsonl").read_bytes() == complete

    # As if it had been killed while writing the second sentence of frame 6.
    lines = complete.splitlines(keepends=True)
    (output / "masks.jsonl").write_bytes(b"".join(lines[:13]) + lines[13][:20])
    (output / "masks" / "1" / "000008.png").unlink()
    stored = (output / "settings.json").read_text()
    (output / "settings.json").write_text(stored.replace('"finished": true', '"finished": false'))
    predicted: list[int] = []
    segment_frame_pairs = Segmenter.segment_frame_pairs

    def spy(self: Segmenter, frame_pairs: Iterable[TimedFramePair], text: tuple[str, ...]) -> Iterator[Segmentation]:
        for segmentation in segment_frame_pairs(self, frame_pairs, text):
            predicted.append(segmentation.frame_pair.index)
            yield segmentation

    monkeypatch.setattr(Segmenter, "segment_frame_pairs", spy)
    predict(segmenter, run, output, resume=True)
    assert predicted == [6, 7, 8, 9]
    assert (output / "masks.jsonl").read_bytes() == complete
    assert (output / "masks" / "1" / "000008.png").exists()
    assert len(read_frames(output / "overlay.mp4")) == 10

    # A complete run is left alone; only the explanations are drawn.
    overlay = (output / "overlay.mp4").stat()
    predict(segmenter, run, output, explain_frames=[2], resume=True)
    assert (output / "overlay.mp4").stat() == overlay and predicted == [6, 7, 8, 9]
    assert (output / "explain" / "000002-1.png").exists()

    with pytest.raises(UserError, match="every: 1 there, 2 requested"):
        predict(segmenter, settings(video, every=2), output, resume=True)
    write_clip(video, frames=12)
    with pytest.raises(UserError, match="video_size: .* there"):
        predict(segmenter, run, output, resume=True)
    with pytest.raises(UserError, match="no run to resume"):
        predict(segmenter, run, tmp_path / "other", resume=True)


def test_masks_of_another_video_are_not_resumed(tmp_path: Path) -> None:
    """A folder of images has the same size, in frames, when its images are replaced."""
    (tmp_path / "frames").mkdir()
    for index in range(2):
        Image.fromarray(numbered_frame(index)).save(tmp_path / "frames" / f"{index}.png")
    run, output = settings(tmp_path / "frames"), tmp_path / "output"
    predict(tiny_segmenter(), run, output)
    stored = (output / "settings.json").read_text()
    (output / "settings.json").write_text(stored.replace('"finished": true', '"finished": false'))
    for index in range(2):
        Image.fromarray(numbered_frame(index, (64, 48))).save(tmp_path / "frames" / f"{index}.png")
    with pytest.raises(UserError, match="holds the masks of another video"):
        predict(tiny_segmenter(), run, output, resume=True)


def test_frames_of_different_sizes(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for index, size in enumerate([(48, 64), (48, 64), (64, 48)]):
        Image.fromarray(numbered_frame(index, size)).save(tmp_path / "frames" / f"{index}.png")
    with pytest.raises(UserError, match="frame 2 is 48 x 64 pixels, those before it 64 x 48"):
        predict(tiny_segmenter(), settings(tmp_path / "frames"), tmp_path / "output")


def test_truncated_clip_prints_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The header of Matroska has the duration of a clip, and not its number of frames.
    content = write_clip(tmp_path / "a.mkv", frames=20, times=[*range(0, 100, 5)]).read_bytes()
    (tmp_path / "a.mkv").write_bytes(content[: len(content) * 4 // 5])
    predict(tiny_segmenter(), settings(tmp_path / "a.mkv"), tmp_path / "output")
    warning = r"has 4\.\d s according to its header, but only [12]\.\d s can be read"
    assert re.search(warning, capsys.readouterr().err)


def test_model_in_the_package_is_described() -> None:
    default = arguments().parse_args(["--video=a", "--text=b", "--output=c"]).checkpoint
    assert 'knows colored shapes and how they move, as in "the red' in describe_model(load_checkpoint(default))


# -- the command line


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, checkpoint = tmp_path_factory.mktemp("model"), tiny_checkpoint()
    save_weights(folder / "model", checkpoint.variables, checkpoint.config, checkpoint.sentence_encoder, unused={})
    return folder / "model"


def test_command(checkpoint_folder: Path, tmp_path: Path) -> None:
    video, output = write_clip(tmp_path / "a.mp4", frames=3), tmp_path / "output"
    flags = [f"--video={video}", "--text=the red dog", f"--checkpoint={checkpoint_folder}", f"--output={output}"]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling takes longer than computing
    done = subprocess.run(
        [sys.executable, "-m", "lbdt_jax.predict", *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Model: LBDT-1 with ResNet-18 of" in done.stdout and "colored shapes" not in done.stdout
    assert "3 frames in" in done.stdout and len(list((output / "masks" / "1").iterdir())) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint={folder}", "--output=x"], "No checkpoint in"),
        (["--checkpoint={model}", "--output={folder}/a.mp4/x"], "Can't read or write"),
        (["--checkpoint={model}", "--output=x", "--every=0"], "0 is below 1, or not finite"),
    ],
)
def test_errors_of_the_command(
    checkpoint_folder: Path,
    tmp_path: Path,
    flags: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video = write_clip(tmp_path / "a.mp4", frames=3)
    flags = [flag.format(folder=tmp_path, model=checkpoint_folder) for flag in flags]
    monkeypatch.setattr(sys, "argv", ["predict", f"--video={video}", "--text=the red dog", *flags])
    with pytest.raises(SystemExit) as exit_info:
        command.main()
    errors = capsys.readouterr().err
    assert exit_info.value.code == 2 and message in errors and "Traceback" not in errors
    assert not Path("x").exists()
