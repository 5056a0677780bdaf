"""Writes small made-up datasets in their raw layouts, with every oddity of the real ones but no errors."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat

HEIGHT, WIDTH, LENGTH = 48, 64, 16

VIDEOSET = """\
walker,12,0:00:01,0:00:03,48,64,16,3,0
runner,13,0:00:01,0:00:03,48,64,16,1,0
Cat_-1,31,0:00:01,0:00:03,48,64,16,1,1
silent,31,0:00:01,0:00:03,48,64,16,1,1
"""
SENTENCES = """\
video_id,instance_id,query
walker,0, the man in red walking left
walker,1,Woman  standing, still
walker,1 (copy),woman standing still
runner,15,a dog that runs
Cat_-1,2,cat is jumping.
"""


def frame(index: int) -> np.ndarray:
    """Frame `index` (from 0) of every clip, (H, W, 3) uint8; its mean brightness identifies it."""
    image = np.full((HEIGHT, WIDTH, 3), 20 + 12 * index, np.uint8)
    image[:8, :8] = (200, 40, 40)
    return image


def box(top: int, left: int, height: int = 10, width: int = 20) -> np.ndarray:
    """A mask, (H, W) bool, of a rectangle."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def write_clip(path: Path, length: int = LENGTH, rate: int | Fraction = 24) -> None:
    """Writes an MP4 file of `length` frames, `rate` of them per second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for index in range(length):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame(index), format="rgb24")))
        container.mux(stream.encode(None))


def write_h5(path: Path, ids: list[int], masks: list[np.ndarray]) -> None:
    """Writes masks as MATLAB did: (n, W, H), or (W, H) for a single mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = np.stack([mask.T for mask in masks]).astype(np.uint8)
    with h5py.File(path, "w") as file:
        file["instance"] = np.array(ids, np.float64).reshape(-1, 1)
        file["reMask"] = planes[0] if len(masks) == 1 else planes


def write_a2d(raw: Path) -> Path:
    """Writes A2D-Sentences: two training videos, a test video and one without sentences. Returns `raw`.

    There are 5 annotated frames, and 7 samples of which 6 are for training.
    """
    (raw / "Release").mkdir(parents=True)
    (raw / "Release/videoset.csv").write_text(VIDEOSET)
    annotations = raw / "text_annotations"
    annotations.mkdir()
    (annotations / "a2d_annotation.txt").write_text(SENTENCES)
    (annotations / "a2d_missed_videos.txt").write_text("unheard\nsilent")
    for video in ("walker", "runner", "Cat_-1", "silent"):
        write_clip(raw / f"Release/clips320H/{video}.mp4")
    masks = annotations / "a2d_annotation_with_instances"
    write_h5(masks / "walker/00001.h5", [0, 1], [box(4, 4), box(30, 8)])
    write_h5(masks / "walker/00007.h5", [1, 0], [box(30, 12), box(4, 10), box(0, 0)])  # more planes than ids
    write_h5(masks / "walker/00012.h5", [1], [box(30, 20)])  # a single mask; instance 0 is absent
    write_h5(masks / "runner/00016.h5", [15], [box(10, 10), box(0, 0)])  # one id, two planes
    write_h5(masks / "Cat_-1/00008.h5", [2], [box(5, 30)])
    return raw


JHMDB_SENTENCES = """\
video_id,query
@20_Clap!_(loud)_clap_u_nm_np1_fr_med_0, Man in black, clapping
a+b_run_f_cm_np1_le_bad_1,"a woman, running"
"""
CLAP, RUN = "@20_Clap!_(loud)_clap_u_nm_np1_fr_med_0", "a+b_run_f_cm_np1_le_bad_1"
#: (action, video, sentence, frames in the list of samples)
JHMDB_SAMPLES = (
    ("clap", CLAP, "Man in black, clapping", (1, 5, 6)),
    ("run", RUN, "a woman, running", (7, 8, 9)),
)


def write_frames(folder: Path, length: int) -> None:
    """Writes frames from 00001.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(length):
        Image.fromarray(frame(index)).save(folder / f"{index + 1:05d}.png")


def write_puppet_mask(path: Path, masks: list[np.ndarray]) -> None:
    """Writes masks as MATLAB did: part_mask is (H, W, T) uint8, or (H, W) for a single mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stack = np.stack(masks, axis=-1).astype(np.uint8)
    savemat(path, {"part_mask": stack[..., 0] if len(masks) == 1 else stack}, do_compression=True)


def write_jhmdb(raw: Path) -> Path:
    """Writes J-HMDB-Sentences: two test videos of 16 and 12 frames, the second with 9 masks. Returns `raw`.

    Six samples are listed, two of them without an earlier frame. The mask of frame n (from 1) is box(n, 2 * n).
    """
    for (action, video, _, _), length, mask_count in zip(JHMDB_SAMPLES, (16, 12), (16, 9), strict=True):
        write_frames(raw / "Rename_Images" / action / video, length)
        masks = [box(index, 2 * index) for index in range(1, mask_count + 1)]
        write_puppet_mask(raw / "puppet_mask" / action / video / "puppet_mask.mat", masks)
    (raw / "Rename_Images/.DS_Store").write_bytes(b"\0")
    (raw / "Rename_Images/clap/.DS_Store").write_bytes(b"\0")
    (raw / "Rename_Images/clap" / CLAP / "._00001.png").write_bytes(b"\0")
    (raw / "jhmdb_annotation.txt").write_text(JHMDB_SENTENCES)
    prefix = "./jhmdb_sentences"  # the list comes from another machine
    entries = [
        [
            video,
            f"{prefix}/Rename_Images/{action}/{video}/{index:05d}.png",
            f"{prefix}/puppet_mask/{action}/{video}/puppet_mask.mat",
            16,
            sentence,
        ]
        for action, video, sentence, indices in JHMDB_SAMPLES
        for index in indices
    ]
    (raw / "jhmdb_sentences_samples_metadata.json").write_text(json.dumps(entries))
    return raw


def write_lbdt_layout(folder: Path) -> Path:
    """Writes the three datasets in LBDT's own layout, in the folders `a2d`, `jhmdb` and `ytvos`. Returns `folder`.

    a2d: frames 1 to 12 of `walker` with masks in 2 and 9, and frames 4 and 5 of `Cat_-1` with masks in 5. jhmdb: the
    videos of `write_jhmdb`. ytvos: every 5th frame of `penguin` and `man`, in which objects 1 and 2 are boxes.
    """
    a2d, jhmdb, ytvos = folder / "a2d", folder / "jhmdb", folder / "ytvos"
    for video, indices in {"walker": range(1, 13), "Cat_-1": (4, 5)}.items():
        for index in indices:
            write_jpeg(a2d / f"images/{video}/{index:05d}.jpg", frame(index - 1))
    write_h5(a2d / "masks/walker/00002.h5", [0, 1], [box(4, 4), box(30, 8)])
    write_h5(a2d / "masks/walker/00009.h5", [1], [box(30, 20)])
    write_h5(a2d / "masks/Cat_-1/00005.h5", [2], [box(5, 30)])
    (a2d / "train.txt").write_text(LBDT_A2D)
    (a2d / "val.txt").write_text("Cat_-1/00005,48,64,2,cat, jumping,13")
    write_jhmdb(jhmdb)
    for name in ("jhmdb_annotation.txt", "jhmdb_sentences_samples_metadata.json"):
        (jhmdb / name).unlink()
    rows = [f"{video}/{index:05d},48,64,1,{text},5" for _, video, text, indices in JHMDB_SAMPLES for index in indices]
    (jhmdb / "val.txt").write_text("\n".join(rows))
    for split, video in (("train", "penguin"), ("val", "man")):
        for index in (0, 5, 10):
            write_jpeg(ytvos / split / f"JPEGImages/{video}/{index:05d}.jpg", frame(index))
            labels = 1 * box(4, index) + (2 * box(30, index) if index else 0)
            path = ytvos / split / f"Annotations/{video}/{index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels.astype(np.uint8)).save(path)
    (ytvos / "train.txt").write_text(LBDT_YTVOS.replace("VIDEO", "penguin"))
    (ytvos / "val.txt").write_text(LBDT_YTVOS.replace("VIDEO", "man").replace("#", "~"))
    return folder


LBDT_A2D = """\
walker/00002,48,64,0, the man in red ,12
walker/00009,48,64,1,a woman,13
walker/00002,48,64,1,a woman,13
"""
LBDT_YTVOS = """\
VIDEO/00000#48#64#1#the first
VIDEO/00005#48#64#1#the first
VIDEO/00000#48#64#2#the second
VIDEO/00005#48#64#2#the second
VIDEO/00005#48#64#1#the one at the top
VIDEO/00010#48#64#1#the first
VIDEO/00010#48#64#1#the first
"""


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Writes an image, (H, W, 3) uint8 RGB, and creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)
