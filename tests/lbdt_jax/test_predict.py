"""Your own video: frames, times, masks and files come out as they should (lbdt_jax/segmenter, video, film, predict)."""

from __future__ import annotations

import dataclasses
import json
import re
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import av
import jax
import numpy as np
import pytest
from paths import ROOT
from PIL import Image
from pycocotools import mask as run_length
from tiny import STEPS_PER_EPOCH, tiny_config, tiny_variables

import lbdt_jax
from input_pipeline.errors import UserError
from input_pipeline.images import decode_mask, resize_frame
from input_pipeline.text.word_vectors import load_word_vectors
from lbdt_jax.checkpoint import CheckpointError, CheckpointWriter, load_checkpoint
from lbdt_jax.inference.results import PredictionSettings, Stopwatch
from lbdt_jax.inference.segmenter import Segmenter
from lbdt_jax.inference.video import Clip, ClipWriter, open_clip
from lbdt_jax.metrics import resize_logits
from lbdt_jax.optimizer import make_optimizer
from lbdt_jax.parallel import make_mesh, replicate
from lbdt_jax.predict import arguments, describe_model, predict
from lbdt_jax.step import initial_state, make_model
from lbdt_jax.visualization import video_strip

TEXT = ("the red dog", "a black cat")


@pytest.fixture(scope="module")
def variables() -> dict[str, Any]:
    """Of the tiny network, its last bias such that about half of all logits are positive."""
    rng, model, tiny = np.random.default_rng(1), make_model(tiny_config()), tiny_variables()
    frames = rng.integers(0, 256, (2, 2, 64, 64, 3), dtype=np.uint8)
    logits = model.apply(tiny, *frames, rng.standard_normal((2, 5, 6)).astype(np.float32), np.ones((2, 5), bool))

    def shifted(path: tuple[Any, ...], array: np.ndarray) -> np.ndarray:
        last = jax.tree_util.keystr(path, simple=True, separator="/") == "params/head/project/bias"
        return array - np.median(logits) if last else array

    return jax.tree_util.tree_map_with_path(shifted, tiny)


@pytest.fixture(scope="module")
def workdir(variables: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    words = load_word_vectors("random:6", {"the", "red", "dog", "a", "black", "cat"})
    with CheckpointWriter(folder / "checkpoints", 1) as writer:
        state = initial_state(variables, make_optimizer(tiny_config(), STEPS_PER_EPOCH))
        writer.save(replicate(state, make_mesh(jax.devices()[:1])), tiny_config(), words)
    return folder


@pytest.fixture(scope="module")
def segmenter(workdir: Path) -> Segmenter:
    return lbdt_jax.load(workdir)


def picture(index: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A frame whose brightness tells its number, with a red corner at the upper left."""
    frame = np.full((*size, 3), 30 + 8 * index, np.uint8)
    frame[: size[0] // 4, : size[1] // 4] = (220, 30, 30)
    return frame


def write_clip(path: Path, frames: int = 10, size: tuple[int, int] = (48, 64), times: list[int] | None = None) -> Path:
    """A clip at 24 frames per second, or with the given times in units of 1/24 s."""
    codec, pixels = {".gif": ("gif", "rgb8"), ".webm": ("libvpx-vp9", "yuv444p")}.get(
        path.suffix, ("libx264", "yuv444p")
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options={"crf": "5"} if codec != "gif" else {})
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, size), format="rgb24")
            frame.pts, frame.time_base = times[index] if times else index, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turned(path: Path, quarter: tuple[int, int, int, int]) -> Path:
    """Sets the flag of rotation, the upper left of the track's matrix in an mp4."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4
    # Version 0: version and flags, two dates, track, reserved, length, 2 x reserved, layer, group, volume, reserved.
    matrix = start + 4 + 4 * 5 + 8 + 8
    assert struct.unpack_from(">2i", content, matrix) == (65536, 0)
    a, b, c, d = (value * 65536 for value in quarter)
    struct.pack_into(">9i", content, matrix, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def frames_of(path: Path) -> list[tuple[float, np.ndarray]]:
    clip = open_clip(path)
    return [(float(time * clip.time_base), frame) for time, frame in clip]


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.webm", "a.mkv", "a.gif"])
@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_clips_are_read_frame_by_frame(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    frames = frames_of(write_clip(tmp_path / name, size=size))
    assert [frame.shape for _, frame in frames] == [(*size, 3)] * 10
    coarse = 40 if name.endswith("gif") else 4  # 256 colors
    for index, (time, frame) in enumerate(frames):
        assert time == pytest.approx(index / 24, abs=0.011 if name.endswith("gif") else 0.001)
        assert np.abs(frame.astype(int) - picture(index, size)).mean() < coarse


def test_changing_frame_rates_keep_their_times(tmp_path: Path) -> None:
    times = [0, 1, 2, 6, 7, 20, 21, 22, 40, 41]
    clip = write_clip(tmp_path / "a.mp4", times=times)
    assert [time for time, _ in frames_of(clip)] == pytest.approx([time / 24 for time in times])


@pytest.mark.parametrize(
    ("quarter", "corner"),
    [((0, 1, -1, 0), "upper right"), ((-1, 0, 0, -1), "lower right"), ((0, -1, 1, 0), "lower left")],
)
def test_rotated_clips_come_upright(tmp_path: Path, quarter: tuple[int, int, int, int], corner: str) -> None:
    (_, frame), *_ = frames_of(turned(write_clip(tmp_path / "a.mp4"), quarter))
    assert frame.shape == ((64, 48, 3) if quarter[0] == 0 else (48, 64, 3))
    down, across = corner.split()
    found = frame[-1 if down == "lower" else 0, -1 if across == "right" else 0].astype(int)
    assert np.abs(found - (220, 30, 30)).max() < 30


def test_a_folder_of_pictures_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for index in (10, 9, 2, 100):
        Image.fromarray(picture(index // 4)).save(tmp_path / f"frame {index}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    clip = open_clip(tmp_path, rate=12)
    assert [(float(time * clip.time_base), frame[-1, -1, 0]) for time, frame in clip] == [
        (index / 12, 30 + 8 * (number // 4)) for index, number in enumerate((2, 9, 10, 100))
    ]


def test_written_clips_are_read_as_written(tmp_path: Path) -> None:
    for size in ((48, 64), (47, 63)):
        source = open_clip(write_clip(tmp_path / "source.mp4", size=size, times=[0, 1, 5, 6, 7, 8, 9, 10, 30, 31]))
        path = tmp_path / f"copy{size[0]}.mp4"
        with ClipWriter(path, size, source) as writer:
            for time, frame in source:
                writer.write(time, frame)
        both = list(zip(frames_of(source.path), frames_of(path), strict=True))
        assert len(both) == 10
        for (time, frame), (copied_time, copied) in both:
            assert copied_time == pytest.approx(time, abs=1e-4) and copied.shape == frame.shape
            assert np.abs(copied.astype(int) - frame).mean() < 4


@pytest.mark.parametrize("quarter", [None, (0, 1, -1, 0)])
def test_the_aspect_of_pixels_is_kept(tmp_path: Path, quarter: tuple[int, int, int, int] | None) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        container.mux(stream.encode(None))
    source = open_clip(turned(tmp_path / "a.mp4", quarter) if quarter else tmp_path / "a.mp4")
    assert source.pixel_aspect == (Fraction(3, 4) if quarter else Fraction(4, 3))
    ((time, frame),) = source
    with ClipWriter(tmp_path / "copy.mp4", frame.shape[:2], source) as writer:
        writer.write(time, frame)
    assert open_clip(tmp_path / "copy.mp4").pixel_aspect == source.pixel_aspect


@pytest.mark.parametrize(("rate", "between"), [(30, 6), (60, 12), (15, 3), (10, 2), (2, 1)])
def test_the_earlier_frame_lies_a_fifth_of_a_second_before(segmenter: Segmenter, rate: int, between: int) -> None:
    assert segmenter.seconds_between == 0.2  # 6 frames at 30 per second, as published
    frame_pairs = list(segmenter.frame_pairs((index / rate, picture(index)) for index in range(20)))
    assert [frame_pair.index for frame_pair in frame_pairs] == list(range(20))
    for frame_pair in frame_pairs:
        earlier = max(frame_pair.index - between, 0)
        if rate == 2:  # 0.5 s before is farther from 0.2 s than the frame itself
            earlier = frame_pair.index
        np.testing.assert_array_equal(frame_pair.original_earlier_frame, picture(earlier))
        np.testing.assert_array_equal(frame_pair.earlier_frame, resize_frame(picture(earlier), (64, 64)))
        np.testing.assert_array_equal(frame_pair.frame, resize_frame(picture(frame_pair.index), (64, 64)))


@pytest.mark.parametrize(("rate", "between"), [(None, 6), (15, 3)])
def test_segment_is_the_network_on_every_frame(
    segmenter: Segmenter, variables: dict[str, Any], rate: float | None, between: int
) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (9, 48, 64, 3), dtype=np.uint8)
    masks, scores = segmenter.segment(frames, TEXT, rate=rate)
    assert masks.shape == (9, 2, 48, 64) and masks.dtype == bool and scores.shape == (9, 2)

    model = make_model(tiny_config())
    words, word_mask = zip(*(segmenter.checkpoint.sentence_encoder.encode(text, 5) for text in TEXT), strict=True)
    sizes = [resize_frame(frame, (64, 64)) for frame in frames]
    for index in range(9):
        pair = (np.stack([sizes[at]] * 2) for at in (index, max(index - between, 0)))
        logits = np.asarray(model.apply(variables, *pair, np.stack(words), np.stack(word_mask)))
        for sentence in range(2):
            expected = resize_logits(logits[sentence], (48, 64))
            clear = np.abs(expected) > 1e-4
            np.testing.assert_array_equal(masks[index, sentence][clear], expected[clear] > 0)
            probability = 1 / (1 + np.exp(-logits[sentence][logits[sentence] > 0]))
            assert scores[index, sentence] == pytest.approx(probability.mean() if probability.size else 0, abs=1e-4)
    assert 0 < masks.mean() < 1


def test_words_beside_those_of_the_checkpoint_are_looked_up(segmenter: Segmenter) -> None:
    # Its source, random:6, is there: every word has a vector, and the words of the checkpoint keep theirs.
    assert segmenter.unknown_words(["the purple dog"]) == []
    words, word_mask = segmenter.encode(["the purple dog"])
    assert word_mask.sum() == 3 and np.abs(words[0, :3]).min() > 0


def test_a_word_is_looked_up_once(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "lbdt_jax.inference.segmenter.extend", lambda own, source, words: asked.append(sorted(words)) or own
    )
    model = lbdt_jax.load(workdir, "glove.txt")
    for _ in range(3):
        model.encode(["the dog, running"])
    assert asked == [[", ", "running"]]


def test_a_checkpoint_that_does_not_fit_itself(workdir: Path) -> None:
    checkpoint = lbdt_jax.load(workdir).checkpoint
    config = checkpoint.config.copy_and_resolve_references()
    config.model.transfer_layers = 2
    with pytest.raises(CheckpointError, match="another version of lbdt_jax: .*bridges_1.* is missing"):
        Segmenter(dataclasses.replace(checkpoint, config=config))


def test_without_their_source_unknown_words_are_named(workdir: Path) -> None:
    lone = lbdt_jax.load(workdir)
    config = lone.checkpoint.config.copy_and_resolve_references()
    config.word_vectors = "no/such/file"
    lone = Segmenter(dataclasses.replace(lone.checkpoint, config=config))
    assert lone.unknown_words(["the purple dog"]) == ["purple"]
    with pytest.raises(UserError, match="knows no word of sentence 2, '一只狗'.*no/such/file: --word_vectors"):
        lone.encode(["the dog", "一只狗"])
    with pytest.raises(UserError, match="no/such/other: no such file"):
        Segmenter(lone.checkpoint, "no/such/other").encode(["the purple dog"])
    with pytest.raises(UserError, match="other word vectors"):
        Segmenter(lone.checkpoint, "random:7").encode(["the purple dog"])


@pytest.mark.parametrize(
    ("frames", "sentences", "message"),
    [
        (np.zeros((2, 8, 8), np.uint8), ["the dog"], "Frame 0 is uint8 of shape"),
        (np.zeros((2, 8, 8, 3), np.float32), ["the dog"], "Frame 0 is float32"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], ["the dog"], "Frame 1 has shape"),
        (np.zeros((0, 8, 8, 3), np.uint8), ["the dog"], "no frame"),
        (np.zeros((2, 8, 8, 3), np.uint8), ["the dog", " "], "Sentence 2 is empty"),
        (np.zeros((2, 8, 8, 3), np.uint8), [], "list of sentences"),
        (np.zeros((2, 8, 8, 3), np.uint8), "the dog", "list of sentences"),
    ],
)
def test_what_cannot_be_segmented_is_told(
    segmenter: Segmenter, frames: np.ndarray, sentences: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        segmenter.segment(frames, sentences)


def settings(segmenter: Segmenter, video: Path, **others: object) -> PredictionSettings:
    return PredictionSettings(str(segmenter.checkpoint.path), str(video), TEXT, **others)


def test_everything_that_predict_writes(
    segmenter: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_clip(tmp_path / "a.mp4", times=[0, 1, 2, 6, 7, 20, 21, 22, 40, 41])
    output = tmp_path / "output"
    predict(segmenter, settings(segmenter, video), output, explained=[3])
    lines = [json.loads(line) for line in (output / "masks.jsonl").read_text().splitlines()]
    assert [(line["frame"], line["sentence"]) for line in lines] == [(f, s) for f in range(10) for s in (1, 2)]

    # The same masks as the library's, in every form.
    answers = list(segmenter.segment_frame_pairs(segmenter.frame_pairs(frames_of(video)), TEXT))
    assert len(answers) == 10
    overlay = frames_of(output / "overlay.mp4")
    for line in lines:
        answer, sentence = answers[line["frame"]], line["sentence"]
        expected = answer.masks[sentence - 1]
        np.testing.assert_array_equal(run_length.decode(line["segmentation"]).astype(bool), expected)
        stored = (output / "masks" / str(sentence) / f"{line['frame']:06d}.png").read_bytes()
        np.testing.assert_array_equal(decode_mask(stored), expected)
        assert line["confidence"] == pytest.approx(float(answer.scores[sentence - 1]), abs=1e-6)
        assert line["time"] == pytest.approx(answer.frame_pair.time, abs=1e-6)
    assert [time for time, _ in overlay] == pytest.approx([answer.frame_pair.time for answer in answers], abs=1e-4)
    # Every frame of the overlay is that frame, and none beside it.
    drawn = [
        video_strip.draw_segmentation(answer.frame_pair.original_frame, answer.masks, TEXT).astype(int)
        for answer in answers
    ]
    for index, (_, frame) in enumerate(overlay):
        assert np.argmin([np.abs(frame - other).mean() for other in drawn]) == index

    for name in ("contact_sheet.png", "explain/000003-1.png", "explain/000003-2.png"):
        with Image.open(output / name) as sheet:
            assert sheet.width > 1000
    assert json.loads((output / "settings.json").read_text())["text"] == list(TEXT)
    printed = capsys.readouterr().out
    assert "10 frames" in printed and "model" in printed and "'a black cat': mean confidence" in printed


def test_every_start_and_end(segmenter: Segmenter, tmp_path: Path) -> None:
    video = write_clip(tmp_path / "a.mp4", frames=20)
    asked = settings(segmenter, video, every=2, start=3 / 24, end=12 / 24)
    predict(segmenter, asked, tmp_path / "output")
    lines = [json.loads(line) for line in (tmp_path / "output" / "masks.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines[::2]] == [4, 6, 8, 10, 12]
    # Frames that were not asked about are earlier frames all the same.
    whole = list(segmenter.segment_frame_pairs(segmenter.frame_pairs(frames_of(video)), TEXT))
    for line in lines:
        expected = whole[line["frame"]].masks[line["sentence"] - 1]
        np.testing.assert_array_equal(run_length.decode(line["segmentation"]).astype(bool), expected)
    times = [time for time, _ in frames_of(tmp_path / "output" / "overlay.mp4")]
    assert times == pytest.approx([line["time"] for line in lines[::2]], abs=1e-3)
    with pytest.raises(UserError, match="no frame between"):
        predict(segmenter, settings(segmenter, video, start=9.0), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_killed_run_is_resumed(segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = write_clip(tmp_path / "a.mp4")
    asked, output = settings(segmenter, video), tmp_path / "output"
    predict(segmenter, asked, output)
    whole = (output / "masks.jsonl").read_bytes()
    with pytest.raises(UserError, match="Nothing is overwritten"):
        predict(segmenter, asked, output)
    assert (output / "masks.jsonl").read_bytes() == whole

    # As if killed while the second sentence of frame 6 was written.
    lines = whole.splitlines(keepends=True)
    (output / "masks.jsonl").write_bytes(b"".join(lines[:13]) + lines[13][:20])
    (output / "masks" / "1" / "000008.png").unlink()
    stored = (output / "settings.json").read_text()
    (output / "settings.json").write_text(stored.replace('"finished": true', '"finished": false'))
    seen: list[int] = []
    answers = Segmenter.segment_frame_pairs

    def watched(self: Segmenter, frame_pairs: object, text: tuple[str, ...]) -> object:
        for answer in answers(self, frame_pairs, text):
            seen.append(answer.frame_pair.index)
            yield answer

    monkeypatch.setattr(Segmenter, "segment_frame_pairs", watched)
    predict(segmenter, asked, output, resume=True)
    assert seen == [6, 7, 8, 9]
    assert (output / "masks.jsonl").read_bytes() == whole
    assert (output / "masks" / "1" / "000008.png").exists()
    assert len(frames_of(output / "overlay.mp4")) == 10

    # Now that it is whole, nothing is drawn anew but what is asked for.
    overlay = (output / "overlay.mp4").stat()
    predict(segmenter, asked, output, explained=[2], resume=True)
    assert (output / "overlay.mp4").stat() == overlay and seen == [6, 7, 8, 9]
    assert (output / "explain" / "000002-1.png").exists()

    with pytest.raises(UserError, match="every: 1 there, 2 asked for"):
        predict(segmenter, settings(segmenter, video, every=2), output, resume=True)
    write_clip(video, frames=12)
    with pytest.raises(UserError, match="video_size: .* there"):
        predict(segmenter, asked, output, resume=True)
    with pytest.raises(UserError, match="no run to go on with"):
        predict(segmenter, asked, tmp_path / "other", resume=True)


def not_a_video(path: Path) -> str:
    path.write_text("nothing to see")
    return "is no video"


def cut_short(path: Path) -> str:
    write_clip(path)
    path.write_bytes(path.read_bytes()[:-200])
    return "no frame that can be read. Is it cut short?"


def sound_only(path: Path) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return "has no pictures, only audio"


def missing(path: Path) -> str:
    return "There is no video"


def empty_folder(path: Path) -> str:
    path.mkdir()
    return "holds no picture"


def sizes_differ(path: Path) -> str:
    path.mkdir()
    for index, size in enumerate([(48, 64), (48, 64), (64, 48)]):
        Image.fromarray(picture(index, size)).save(path / f"{index}.png")
    return "frame 2 is 48 x 64 pixels, those before it 64 x 48"


def broken_picture(path: Path) -> str:
    path.mkdir()
    Image.fromarray(picture(0)).save(path / "0.png")
    (path / "1.png").write_bytes((path / "0.png").read_bytes()[:60])
    return "1.png can't be read"


@pytest.mark.parametrize(
    "fault", [not_a_video, cut_short, sound_only, missing, empty_folder, sizes_differ, broken_picture]
)
def test_bad_videos(segmenter: Segmenter, tmp_path: Path, fault: object) -> None:
    message = fault(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=message):
        predict(segmenter, settings(segmenter, tmp_path / "a.mp4"), tmp_path / "output")


def test_a_clip_that_ends_before_it_says(
    segmenter: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Matroska tells how long a clip lasts, and not how many frames it has.
    content = write_clip(tmp_path / "a.mkv", frames=20, times=[*range(0, 100, 5)]).read_bytes()
    (tmp_path / "a.mkv").write_bytes(content[: len(content) * 4 // 5])
    predict(segmenter, settings(segmenter, tmp_path / "a.mkv"), tmp_path / "output")
    assert re.search(r"says that it lasts 4\.\d s, and ends after [12]\.\d s", capsys.readouterr().err)


def test_the_command(workdir: Path, tmp_path: Path) -> None:
    video = write_clip(tmp_path / "a.mp4", frames=3)
    command = [sys.executable, "-m", "lbdt_jax.predict", f"--video={video}", "--text=the red dog"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)

    done = run(f"--checkpoint={workdir}", f"--output={tmp_path / 'output'}")
    assert done.returncode == 0, done.stderr
    assert "Model: LBDT-1 with ResNet-18 of" in done.stdout and "coloured shapes" not in done.stdout
    assert "3 frames in" in done.stdout and len(list((tmp_path / "output" / "masks" / "1").iterdir())) == 3
    for flags, message in [
        ([f"--checkpoint={tmp_path}", "--output=x"], "No checkpoint in"),
        ([f"--checkpoint={workdir}", f"--output={video}/x"], "Can't read or write"),
        ([f"--checkpoint={workdir}", "--output=x", "--every=0"], "0 is below 1, or not finite"),
    ]:
        done = run(*flags)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (ROOT / "x").exists()


def test_the_model_in_the_package_says_what_it_knows() -> None:
    assert 'knows coloured shapes and how they move, as in "the red' in describe_model(
        load_checkpoint(arguments().parse_args(["--video=a", "--text=b", "--output=c"]).checkpoint)
    )


def test_the_shares_of_time_add_up() -> None:
    watch = Stopwatch()

    def slow(items: Any) -> Any:
        for item in items:
            sleep(0.01)
            yield item

    started = monotonic()
    assert list(watch.each("outer", slow(watch.each("inner", slow(range(10)))))) == list(range(10))
    whole = monotonic() - started
    assert 0.1 <= watch.seconds["inner"] <= whole - 0.1 and watch.seconds["outer"] >= 0.1
    assert sum(watch.seconds.values()) <= whole


def test_a_killed_overlay_is_valid_to_its_last_second(tmp_path: Path) -> None:
    clip = Clip(tmp_path, Fraction(1000), Fraction(1, 24), 0, None)  # labelled with another rate than it has
    writer = ClipWriter(tmp_path / "a.mp4", (48, 64), clip)
    for index in range(24 * 10):
        writer.write(index, picture(index % 24))
    (tmp_path / "killed.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    assert len(frames_of(tmp_path / "killed.mp4")) >= 24 * 8
    writer.__exit__()


def test_pictures_that_h264_cannot_hold(segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    Image.fromarray(picture(0, (4, 20_000))).save(tmp_path / "frames" / "0.png")
    with pytest.raises(UserError, match="can't hold pictures of 20000 x 4 pixels"):
        predict(segmenter, settings(segmenter, tmp_path / "frames"), tmp_path / "output")


def test_many_sentences_fit_below_a_frame() -> None:
    masks = np.zeros((200, 180, 240), bool)
    masks[0, 10:40, 10:40] = True
    blank = np.full((180, 240, 3), 200, np.uint8)
    few = video_strip.draw_segmentation(blank, masks[:1], ["the dog"])
    many = video_strip.draw_segmentation(blank, masks, ["the dog " * 50] * 200)
    for drawn in (few, many):
        assert drawn.shape == (180, 240, 3)
        assert (drawn[41:110] == 200).all()  # the text keeps to the lower third
        assert (drawn[170:] < 190).any()
    assert (many[130:] != 200).sum() > 2 * (few[130:] != 200).sum()
    np.testing.assert_array_equal(
        video_strip.draw_segmentation(blank[:150], masks[1:2, :150], ["the dog"]), blank[:150]
    )
