"""Writes small made-up copies of Refer-YouTube-VOS and Ref-DAVIS17: folders of JPEG frames and palette masks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from fake_datasets import HEIGHT, WIDTH, box, frame, write_jpeg
from PIL import Image


def write_labels(path: Path, objects: dict[int, np.ndarray]) -> None:
    """Writes a palette image whose pixels are the ids of the objects; masks are (H, W) bool."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    for instance, mask in objects.items():
        labels[mask] = instance
    image = Image.fromarray(labels, "L")
    image.putpalette([channel for value in range(256) for channel in (value, 7 * value % 256, 255 - value)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def walking_mask(instance: int, index: int) -> np.ndarray:
    """The mask of an object (1 to 4) that moves to the right, in frame `index` (0 to 30); masks don't overlap."""
    return box(11 * (instance - 1), index, height=8, width=20)


FRAMES, MASKS, TEXTS = "DAVIS/JPEGImages/480p", "DAVIS/Annotations/480p", "davis_text_annotations"
FILES = ("Davis17_annot1", "Davis17_annot1_full_video", "Davis17_annot2", "Davis17_annot2_full_video")
GROUPS = ("annot1 first", "annot1 full", "annot2 first", "annot2 full")
MASKS_FOR_SCORES = "DAVIS/Annotations_unsupervised/480p"
CAR, DOGS = "classic-car", "dogs-scale"
VOID = box(44, 40, height=4)


def masks_for_scores(instances: list[int], index: int) -> dict[int, np.ndarray]:
    """The masks of a frame's objects, with the ids that published scores use."""
    return {255: VOID, **{3 - instance: walking_mask(instance, index) for instance in instances}}


def write_ref_davis17(raw: Path) -> Path:
    """Writes Ref-DAVIS17: a training and a validation video, both without object 2 in frame 1. Returns `raw`.

    Every mask has void pixels. In the masks for published scores, the ids of objects 1 and 2 are swapped.
    """
    present = {CAR: [[1, 2], [1], [1, 2], [1, 2]], DOGS: [[1, 2], [1], [1, 2]]}
    for video, objects in present.items():
        for index, instances in enumerate(objects):
            write_jpeg(raw / FRAMES / video / f"{index:05d}.jpg", frame(index))
            masks = {instance: walking_mask(instance, index) for instance in instances}
            write_labels(raw / MASKS / video / f"{index:05d}.png", {255: VOID, **masks})
            write_labels(raw / MASKS_FOR_SCORES / video / f"{index:05d}.png", masks_for_scores(instances, index))
        (raw / MASKS / video / "._00000.png").write_bytes(b"\0")
    lists = raw / "DAVIS/ImageSets/2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text(f"{CAR}\n")
    (lists / "val.txt").write_text(DOGS)
    (raw / TEXTS).mkdir()
    for annotator, file in enumerate(FILES):
        lines = ["clasic-car 1 car", "clasic-car 2 driver", "dog-scale 1 dog", "dog-scale 2 scale"]
        lines = [" ".join(line.split()[:2]) + f' "a "{line.split()[2]}" n\u00ba {annotator}"\r\n' for line in lines]
        (raw / TEXTS / f"{file}.txt").write_bytes("".join(lines).encode("latin-1" if annotator > 1 else "utf-8"))
    return raw


def convert_ref_davis17(raw: Path, masks: str = MASKS) -> Path:
    """Moves `write_ref_davis17`'s files into the layout of Refer-YouTube-VOS, as other code does. Returns `raw`."""
    texts = {"clasic-car": (CAR, "train"), "dog-scale": (DOGS, "valid")}
    videos: dict[str, dict] = {"train": {}, "valid": {}}
    texts_of = [(raw / TEXTS / f"{file}.txt").read_bytes() for file in FILES]
    lines = [text.decode("latin-1" if i > 1 else "utf-8").splitlines() for i, text in enumerate(texts_of)]
    for name, (video, split) in texts.items():
        of_annotator = [[line.split(" ", 2) for line in text if line.startswith(name)] for text in lines]
        in_order = [row for rows in zip(*of_annotator, strict=True) for row in rows]  # all four of an object
        expressions = {str(i): {"exp": row[2][1:-1], "obj_id": row[1]} for i, row in enumerate(in_order)}
        for kind, folder in (("JPEGImages", FRAMES), ("Annotations", masks)):
            (raw / split / kind).mkdir(parents=True)
            (raw / folder / video).rename(raw / split / kind / video)
        frames = sorted(path.stem for path in (raw / split / "JPEGImages" / video).glob("0*.jpg"))
        videos[split][video] = {"expressions": expressions, "frames": frames}
    for folder in ("DAVIS", TEXTS):
        shutil.rmtree(raw / folder)
    for split, entries in videos.items():
        write_expressions(raw, split, entries)
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


def expressions_file(raw: Path, split: str) -> Path:
    """The JSON file with the expressions of a split."""
    return raw / f"meta_expressions/{split}/meta_expressions.json"


def write_expressions(raw: Path, split: str, videos: object) -> None:
    """Writes the JSON file with the expressions of a split."""
    expressions_file(raw, split).parent.mkdir(parents=True, exist_ok=True)
    expressions_file(raw, split).write_text(json.dumps({"videos": videos}))


def write_refer_youtube_vos(raw: Path) -> Path:
    """Writes Refer-YouTube-VOS: two training videos, one of them in the older form, and a validation video.

    Some objects are absent in some frames. Returns `raw`.
    """
    present = {
        ("train", NEW): {0: [1], 5: [1, 2], 10: [1], 15: [1, 2]},  # frame 0 exists and is not listed
        ("train", OLD): {0: [1], 5: [1, 3], 10: [3]},
        ("valid", MAN): {0: [1], 5: [1, 2]},
    }
    for (split, video), objects in present.items():
        for index, instances in objects.items():
            write_jpeg(raw / split / f"JPEGImages/{video}/{index:05d}.jpg", frame(index))
            masks = {instance: walking_mask(instance, index) for instance in instances}
            write_labels(raw / split / f"Annotations/{video}/{index:05d}.png", masks)
        (raw / split / f"JPEGImages/{video}/._00000.jpg").write_bytes(b"\0")
    write_expressions(raw, "train", TRAIN)
    write_expressions(raw, "valid", VALID)
    write_expressions(raw, "test", {"test_video": VALID["test_video"]})
    (raw / "train/meta.json").write_text("not read")
    return raw
