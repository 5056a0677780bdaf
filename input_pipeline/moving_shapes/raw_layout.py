"""Writes Moving Shapes to disk in the raw layout of A2D-Sentences, so that the real reader reads it.

The layout, see `input_pipeline.readers.a2d_sentences`, is extended by three subsets in videoset.csv and by the file
text_annotations/moving_shapes_groups.csv, with the group under which every sentence is scored.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import av
import h5py
import numpy as np
from tqdm import tqdm

from input_pipeline.errors import UserError
from input_pipeline.moving_shapes.reader import GROUPS, HEADER, MovingShapes
from input_pipeline.moving_shapes.scenes import SPLITS, make_scene
from input_pipeline.moving_shapes.shapes import ANNOTATED_FRAMES, HEIGHT, NUM_FRAMES, WIDTH
from input_pipeline.readers.a2d_sentences import CLIPS, INSTANCES, MISSED_VIDEOS, SENTENCES, VIDEOSET
from input_pipeline.workers import worker_pool

#: Scenes per split: few enough for a first run within minutes on two cores.
SCENES = {"train": 1500, "validation": 100, "test": 200, "unseen_words": 150, "unseen_wordings": 100}
FRAME_RATE = 12  # frames per second: the slowest shapes visibly move, the fastest don't jump
CONSTANT_RATE_FACTOR = "14"  # x264's quality; above about 18 the colors of small shapes bleed
LABEL = 0  # of actor and action: a column of A2D's videoset.csv that no reader uses

# The lines that one scene adds to videoset.csv, to the sentences, and to their groups.
_Lines = tuple[str, list[str], list[str]]


def write_raw(raw: str | Path, seed: int = 0, scenes: Mapping[str, int] = SCENES, workers: int | None = None) -> None:
    """Generates the dataset in the folder `raw`, unless it exists already.

    Everything is written to a sibling folder that is renamed at the end, so that an interrupted run leaves nothing that
    looks complete. The files do not depend on the number of workers.

    Args:
      raw: a folder that does not exist yet.
      seed: of all scenes.
      scenes: split -> number of scenes.
      workers: number of processes; None for one per core.

    Raises:
      UserError: `raw` exists and is not Moving Shapes, or a split is unknown.
    """
    raw = Path(raw)
    if unknown := set(scenes) - set(SPLITS):
        raise UserError(f"Unknown splits of Moving Shapes: {sorted(unknown)}; choose from {', '.join(SPLITS)}.")
    if (raw / GROUPS).exists():  # complete, since the folder was renamed at the end
        print(f"Moving Shapes exists already: {raw}")
        return
    if raw.exists():
        raise UserError(f"{raw} exists and is not Moving Shapes. Name another folder, or move it away.")
    with new_folder(raw) as unfinished:
        _write_all(unfinished, seed, scenes, workers)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a folder beside `path`, which does not exist yet, and renames it to `path` if no error occurs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.incomplete{os.getpid()}")
    unfinished.mkdir()
    try:
        yield unfinished
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    for leftover in sorted(path.parent.glob(f"{path.name}.incomplete*")):
        print(f"An interrupted run left {leftover}. Delete it unless another run is still writing it.")


def _write_all(root: Path, seed: int, scenes: Mapping[str, int], workers: int | None) -> None:
    for folder in (CLIPS, INSTANCES):
        (root / folder).mkdir(parents=True)
    jobs = [(root, seed, split, index) for split, count in scenes.items() for index in range(count)]
    with worker_pool(workers) as pool:
        results = pool.map(_write_scene, jobs, chunksize=8)
        written: list[_Lines] = list(tqdm(results, "Generating Moving Shapes", len(jobs), unit="scene"))
    (root / VIDEOSET).write_text("".join(f"{videoset}\n" for videoset, _, _ in written))
    sentences = [line for _, lines, _ in written for line in lines]
    (root / SENTENCES).write_text("\n".join(["video_id,instance_id,query", *sentences]) + "\n")
    groups = [line for _, _, lines in written for line in lines]
    (root / GROUPS).write_text("\n".join([HEADER, *groups]) + "\n")
    (root / MISSED_VIDEOS).write_text("")


def _write_scene(job: tuple[Path, int, str, int]) -> _Lines:
    """Makes one scene, writes its clip and masks, and returns its lines."""
    root, seed, split, index = job
    scene = make_scene(seed, split, index)
    video = f"{split}_{index:05d}"
    _write_clip(root / CLIPS / f"{video}.mp4", scene.frames)
    folder = root / INSTANCES / video
    folder.mkdir()
    for frame, masks in scene.masks.items():
        _write_masks(folder / f"{frame:05d}.h5", masks)
    subset = MovingShapes.SUBSETS[split]
    seconds = f"{NUM_FRAMES / FRAME_RATE:.2f}"
    videoset = f"{video},{LABEL},0,{seconds},{HEIGHT},{WIDTH},{NUM_FRAMES},{len(ANNOTATED_FRAMES)},{subset}"
    sentences = [f"{video},{sentence.instance},{sentence.text}" for sentence in scene.sentences]
    groups = [f"{video},{sentence.instance},{sentence.group},{sentence.text}" for sentence in scene.sentences]
    return videoset, sentences, groups


def _write_clip(path: Path, frames: np.ndarray) -> None:
    """Writes frames, (T, H, W, 3) uint8 RGB, as H.264 with subsampled colors, like A2D's clips."""
    with av.open(str(path), "w") as container:
        options = {"crf": CONSTANT_RATE_FACTOR, "preset": "superfast", "threads": "1"}
        stream = container.add_stream("libx264", rate=FRAME_RATE, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _write_masks(path: Path, masks: np.ndarray) -> None:
    """Writes masks, (n, H, W) bool, to an h5 file as MATLAB does: axes reversed, and no first axis if n is 1."""
    planes = masks.transpose(0, 2, 1).astype(np.uint8)
    planes = planes[0] if len(masks) == 1 else planes
    with h5py.File(path, "w") as file:
        file["instance"] = np.arange(len(masks), dtype=np.uint8)
        file.create_dataset("reMask", data=planes, compression="gzip", compression_opts=1)
        file["reBBox"] = np.array([_bounding_box(mask) for mask in masks], np.float64).T


def _bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of the pixels of a mask, counted from 1 as in MATLAB."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0] + 1, rows[0] + 1, columns[-1] + 1, rows[-1] + 1
