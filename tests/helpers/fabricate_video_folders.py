"""Made-up videos as folders of JPEG frames and palette masks, for the tests of Refer-YouTube-VOS and Ref-DAVIS17."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from fabricate import HEIGHT, WIDTH, box, frame
from PIL import Image


def write_frame(path: Path, index: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame(index)).save(path, quality=95)


def write_labels(path: Path, objects: dict[int, np.ndarray]) -> None:
    """A palette picture whose pixels are the ids of the objects; masks are (H, W) bool."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for instance, mask in objects.items():
        labels[mask] = instance
    picture = Image.fromarray(labels, "L")
    picture.putpalette([channel for value in range(256) for channel in (value, 7 * value % 256, 255 - value)])
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def walking(instance: int, number: int) -> np.ndarray:
    """The mask of object `instance` (from 1, at most 4) in frame `number` (at most 30): apart from the others'."""
    return box(11 * (instance - 1), number, height=8, width=20)


def picture_of(path: Path) -> np.ndarray:
    """What the file shows, (H, W, 3) uint8 RGB."""
    return np.asarray(Image.open(path).convert("RGB"))


FRAMES, MASKS, TEXTS = "DAVIS/JPEGImages/480p", "DAVIS/Annotations/480p", "davis_text_annotations"
FILES = ("Davis17_annot1", "Davis17_annot1_full_video", "Davis17_annot2", "Davis17_annot2_full_video")
GROUPS = ("annot1 first", "annot1 full", "annot2 first", "annot2 full")
SCORED = "DAVIS/Annotations_unsupervised/480p"
CAR, DOGS = "classic-car", "dogs-scale"
VOID = box(44, 40, height=4)


def scored(instances: list[int], number: int) -> dict[int, np.ndarray]:
    """The objects of a frame as published scores number them."""
    return {255: VOID, **{3 - instance: walking(instance, number) for instance in instances}}


def fabricate_ref_davis17(raw: Path) -> Path:
    """A training and a validation video; the latter's object 2 is absent in frame 1; void pixels in every mask.

    The masks for published scores have objects 1 and 2 the other way round.
    """
    present = {CAR: [[1, 2], [1], [1, 2], [1, 2]], DOGS: [[1, 2], [1], [1, 2]]}
    for video, objects in present.items():
        for number, instances in enumerate(objects):
            write_frame(raw / FRAMES / video / f"{number:05d}.jpg", number)
            masks = {instance: walking(instance, number) for instance in instances}
            write_labels(raw / MASKS / video / f"{number:05d}.png", {255: VOID, **masks})
            write_labels(raw / SCORED / video / f"{number:05d}.png", scored(instances, number))
        (raw / MASKS / video / "._00000.png").write_bytes(b"\0")
    lists = raw / "DAVIS/ImageSets/2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text(f"{CAR}\n")
    (lists / "val.txt").write_text(DOGS)
    (raw / TEXTS).mkdir()
    for number, file in enumerate(FILES):
        lines = ["clasic-car 1 car", "clasic-car 2 driver", "dog-scale 1 dog", "dog-scale 2 scale"]
        lines = [" ".join(line.split()[:2]) + f' "a "{line.split()[2]}" n\u00ba {number}"\r\n' for line in lines]
        (raw / TEXTS / f"{file}.txt").write_bytes("".join(lines).encode("latin-1" if number > 1 else "utf-8"))
    return raw


TRAIN = {
    "003234408d": {
        "expressions": {
            "0": {"exp": " a Penguin on the left", "obj_id": "1"},
            "1": {"exp": "the second penguin", "obj_id": "2"},
            "2": {"exp": "penguin, at the front", "obj_id": "1"},
        },
        "frames": ["00005", "00010", "00015"],
    },
    "0a7a2514aa": {
        "objects": {
            "1": {"category": "cat", "frames": ["00000", "00005"], "expressions": ["a cat", "a caf\u00e9 cat"]},
            "3": {"category": "dog", "frames": ["00005", "00010"], "expressions": ["a dog"]},
        }
    },
}
VALID = {
    "0062f687f1": {
        "expressions": {"0": {"exp": "a man", "obj_id": "1"}, "1": {"exp": "a horse", "obj_id": "2"}},
        "frames": ["00000", "00005"],
    },
    "test_video": {"expressions": {"0": {"exp": "a boat"}}, "frames": ["00000"]},
}
OLD, NEW, MAN = "0a7a2514aa", "003234408d", "0062f687f1"


def expressions_of(raw: Path, split: str) -> Path:
    return raw / f"meta_expressions/{split}/meta_expressions.json"


def write_expressions(raw: Path, split: str, videos: object) -> None:
    expressions_of(raw, split).parent.mkdir(parents=True, exist_ok=True)
    expressions_of(raw, split).write_text(json.dumps({"videos": videos}))


def fabricate_refer_youtube_vos(raw: Path) -> Path:
    """Two training videos, one in the older form, and a validation video; object 2 of two videos is absent at times."""
    present = {
        ("train", NEW): {0: [1], 5: [1, 2], 10: [1], 15: [1, 2]},  # frame 0 is there, and not listed
        ("train", OLD): {0: [1], 5: [1, 3], 10: [3]},
        ("valid", MAN): {0: [1], 5: [1, 2]},
    }
    for (split, video), objects in present.items():
        for number, instances in objects.items():
            write_frame(raw / split / f"JPEGImages/{video}/{number:05d}.jpg", number)
            masks = {instance: walking(instance, number) for instance in instances}
            write_labels(raw / split / f"Annotations/{video}/{number:05d}.png", masks)
        (raw / split / f"JPEGImages/{video}/._00000.jpg").write_bytes(b"\0")
    write_expressions(raw, "train", TRAIN)
    write_expressions(raw, "valid", VALID)
    write_expressions(raw, "test", {"test_video": VALID["test_video"]})
    (raw / "train/meta.json").write_text("not read")
    return raw
