"""The command segments a video and writes all its files (lbdt_jax/predict.py)."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
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
    assert "10 frames" in printed and "model" in printed
    for number, text in enumerate(SENTENCES, start=1):
        mean = np.mean([line["confidence"] for line in lines if line["sentence"] == number])
        assert f"{text!r}: mean confidence {mean:.2f}\n" in printed


@pytest.mark.parametrize("first", [0, 18, 120])  # less than a second before the first frame is kept, more is not
def test_every_start_and_end_select_frames(first: int, tmp_path: Path) -> None:
    video = write_clip(tmp_path / "a.mp4", frames=20, times=[*range(first, first + 20)])
    segmenter = tiny_segmenter()
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


def test_masks_of_another_model_are_not_resumed(checkpoint_folder: Path, tmp_path: Path) -> None:
    """A model that was trained anew may have the path and the step of the former one."""
    model, output = tmp_path / "model", tmp_path / "output"
    shutil.copytree(checkpoint_folder, model)
    run = settings(write_clip(tmp_path / "a.mp4", frames=2))
    predict(Segmenter(load_checkpoint(model)), run, output)
    stored = json.loads((output / "settings.json").read_text()) | {"finished": False}
    (output / "settings.json").write_text(json.dumps(stored))
    predict(Segmenter(load_checkpoint(model)), run, output, resume=True)

    checkpoint = load_checkpoint(model)
    path = checkpoint.path
    checkpoint.variables["params"]["head"]["project"]["bias"] += 1
    shutil.rmtree(path)
    save_weights(model, checkpoint.variables, checkpoint.config, checkpoint.sentence_encoder, unused={})
    assert load_checkpoint(model).path == path
    (output / "settings.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="has other settings.\n  checkpoint_sha256: "):
        predict(Segmenter(load_checkpoint(model)), run, output, resume=True)
    # Earlier versions did not write it.
    (output / "settings.json").write_text(json.dumps({k: v for k, v in stored.items() if k != "checkpoint_sha256"}))
    predict(Segmenter(load_checkpoint(model)), run, output, resume=True)


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


# -- odd inputs


def test_words_that_are_left_out_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segmenter, long = tiny_segmenter(), "the red dog " * 4 + "a black cat"
    frames = [numbered_frame(index) for index in range(2)]
    with pytest.warns(UserWarning, match="Sentence 2 has 15 tokens, and the model reads 5. Left out: 'dog', 'the', "):
        segmenter.segment(frames, ["a black cat", long])
    predict(
        segmenter, PredictionSettings("tiny", str(write_clip(tmp_path / "a.mp4", frames=2)), (long,)), tmp_path / "o"
    )
    assert "Sentence 1 has 15 tokens, and the model reads 5. Left out: 'dog', 'the'" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0},
        {"every": 2.5},
        {"every": "2"},
        {"start": -1},
        {"start": float("nan")},
        {"start": 2.0, "end": 1.0},
        {"end": float("inf")},
        {"rate": 1e308},
        {"rate": 0},
        {"rate": None},
    ],
)
def test_numbers_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"must be a number from|is later than"):
        settings(Path("a.mp4"), **options)


def test_numbers_of_numpy(tmp_path: Path) -> None:
    video = write_clip(tmp_path / "a.mp4", frames=4)
    predict(tiny_segmenter(), settings(video, every=np.int64(2), end=np.float32(1)), tmp_path / "output")
    assert [line["frame"] for line in read_lines(tmp_path / "output")[::2]] == [0, 2]


def test_odd_sentences_are_drawn_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentences = ("the \x1b[31mred\x07 dog", "the \u202egod", "the كلب 🐕 犬", "the\nred\0 dog", "the " + "x" * 120_000)
    video = write_clip(tmp_path / "a\x1b[2J\n.mp4", frames=2, size=(192, 192))
    predict(tiny_segmenter(), PredictionSettings("tiny", str(video), sentences), tmp_path / "o\x9b\udcff")
    printed = "".join(capsys.readouterr())
    assert not {"\x1b", "\x07", "\u202e", "\0", "\x9b", "\udcff"} & {*printed} and len(printed) < 10**6
    assert json.loads((tmp_path / "o\x9b\udcff" / "settings.json").read_text())["text"] == [*sentences]


def test_too_many_sentences() -> None:
    frame_pair = next(tiny_segmenter().frame_pairs([(0.0, np.zeros((2304, 4096, 3), np.uint8))]))
    command.check_memory(frame_pair, ["the red dog"] * 400)
    with pytest.raises(UserError, match="1,000 sentences about frames of 4096 x 2304 pixels"):
        command.check_memory(frame_pair, ["the red dog"] * 1000)


def test_nothing_of_the_users_is_overwritten(tmp_path: Path) -> None:
    video, segmenter = write_clip(tmp_path / "a.mp4", frames=2), tiny_segmenter()
    (tmp_path / "frames").mkdir()
    Image.fromarray(numbered_frame(0)).save(tmp_path / "frames" / "0.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    before = {path: path.read_bytes() for path in (video, tmp_path / "frames" / "0.png")}
    for path, output in [(video, tmp_path), (video, video), (tmp_path / "frames", tmp_path / "frames")]:
        for resume in (False, True):
            with pytest.raises(UserError):
                predict(segmenter, settings(path), output, resume=resume)
    predict(segmenter, settings(video), tmp_path / "link")
    assert {path: path.read_bytes() for path in before} == before and (tmp_path / "empty" / "overlay.mp4").exists()

    # What a link in the folder of a run leads to stays.
    stored = (tmp_path / "empty" / "settings.json").read_text()
    (tmp_path / "empty" / "settings.json").write_text(stored.replace('"finished": true', '"finished": false'))
    (tmp_path / "empty" / "overlay.mp4").unlink()
    (tmp_path / "empty" / "overlay.mp4").symlink_to(video)
    predict(segmenter, settings(video), tmp_path / "link", resume=True)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(("text", "message"), [("", "Sentence 1 is empty"), ("a red dog", "Nothing is overwritten")])
def test_nothing_is_decoded_before_the_arguments_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    """An hour of video may lie before --start."""
    video = write_clip(tmp_path / "a.mp4", frames=2)
    monkeypatch.delattr(command.Clip, "__iter__")
    with pytest.raises(UserError, match=message):
        predict(tiny_segmenter(), PredictionSettings("tiny", str(video), (text,)), tmp_path)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run can be resumed when there is space again. A limit on the size of files stands for the disk."""
    video, segmenter = write_clip(tmp_path / "a.mp4", frames=12), tiny_segmenter()
    predict(segmenter, settings(video), tmp_path / "expected")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises((OSError, UserError)):
            predict(segmenter, settings(video), tmp_path / "output")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    predict(segmenter, settings(video), tmp_path / "output", resume=True)
    for name in ("masks.jsonl", "masks.sha256", "settings.json"):
        assert (tmp_path / "output" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_output_that_is_not_finite(value: float) -> None:
    segmenter = tiny_segmenter()
    variables = jax.tree_util.tree_map_with_path(
        lambda path, array: np.full_like(array, value) if "head" in str(path) and "bias" in str(path) else array,
        segmenter.checkpoint.variables,
    )
    segmenter._predictor.use(variables)  # without compiling again
    try:
        with pytest.raises(UserError, match="not finite"):
            segmenter.segment([numbered_frame(0)], SENTENCES)
    finally:
        segmenter._predictor.use(segmenter.checkpoint.variables)


@pytest.mark.parametrize(
    "frames",
    [
        [[[0]]],
        ["a.png"],
        [numbered_frame(0) / 255],
        numbered_frame(0),
        [[[1], [2, 3]]],
        [numbered_frame(0).astype("i1")],
        Path("a.mp4"),
        None,
    ],
)
def test_frames_that_are_none(frames: object) -> None:
    with pytest.raises(UserError, match=r"Frame 0 is|Expected the frames of a clip, got (Posix|None)"):
        tiny_segmenter().segment(frames, SENTENCES)


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1e308, 10**400, "12", [12]])
def test_rates_that_are_none(rate: object) -> None:
    with pytest.raises(UserError, match="The rate must be a number above 0"):
        tiny_segmenter().segment([numbered_frame(0)] * 2, SENTENCES, rate=rate)


@pytest.mark.parametrize(
    "sentences", ["the dog", [], None, 5, [1], [b"dog"], {"the dog"}, (text for text in SENTENCES)]
)
def test_sentences_that_are_none(sentences: object) -> None:
    with pytest.raises(UserError, match="Expected a list of sentences"):
        tiny_segmenter().segment([numbered_frame(0)], sentences)


@pytest.mark.parametrize("times", [[0, float("nan")], [float("-inf"), 0], [0, float("inf")], [0, 0]])
def test_times_that_are_none(times: list[float]) -> None:
    with pytest.raises(UserError, match="has the time"):
        list(tiny_segmenter().frame_pairs(zip(times, [numbered_frame(0)] * 2, strict=True)))


@pytest.mark.parametrize(
    "frame", [numbered_frame(0), 5, ("now", numbered_frame(0)), (None, numbered_frame(0)), (10**400, numbered_frame(0))]
)
def test_frames_without_a_time(frame: object) -> None:
    with pytest.raises(UserError, match="Frame 0 has no time"):
        list(tiny_segmenter().frame_pairs([frame]))


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
    """With paths in the home folder, and letters that the terminal can't show."""
    write_clip(tmp_path / "a.mp4", frames=3)
    output = tmp_path / "output"
    flags = ["--video=~/a.mp4", "--text=the \x1b[1mréd dog", f"--checkpoint={checkpoint_folder}", "--output=~/output"]
    environment = os.environ | {
        "HOME": str(tmp_path),
        "PYTHONIOENCODING": "ascii",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes longer than computing
    }
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
    assert "'the \\x1b[1mr\\xe9d dog'" in done.stdout and "\x1b" not in done.stdout
    assert "3 frames in" in done.stdout and len(list((output / "masks" / "1").iterdir())) == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint={folder}", "--output=x"], "No checkpoint in"),
        (["--checkpoint={model}", "--output={folder}/a.mp4/x"], "Can't read or write"),
        (["--checkpoint={model}", "--output={folder}/" + 300 * "x"], "File name too long"),
        (["--checkpoint={model}", "--output={folder}/dangling"], "dangling is not a folder. Nothing is overwritten"),
        (["--checkpoint={model}", "--output=x", "--video={folder}/loop"], "There is no video"),
        (["--checkpoint={model}", "--output=x", "--every=0"], "0 is not a number from 1 to"),
        (["--checkpoint={model}", "--output=x", "--rate=1e308"], "1e308 is not a number from 0.1 to 100000"),
        (["--checkpoint={model}", "--output=x", "--start=2", "--end=1"], "is later than the end"),
        (["--checkpoint={model}", "--output="], "expected a path"),
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
    for name in ("dangling", "loop"):
        (tmp_path / name).symlink_to("loop")
    flags = [flag.format(folder=tmp_path, model=checkpoint_folder) for flag in flags]
    monkeypatch.setattr(sys, "argv", ["predict", f"--video={video}", "--text=the red dog", *flags])
    with pytest.raises(SystemExit) as exit_info:
        command.main()
    errors = capsys.readouterr().err
    assert exit_info.value.code == 2 and message in errors and "Traceback" not in errors
    assert not Path("x").exists()
