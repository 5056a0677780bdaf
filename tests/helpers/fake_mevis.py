"""Writes a small made-up copy of MeViS, and the RLE of masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from fake_datasets import frame, write_jpeg
from fake_video_folders import walking_mask
from pycocotools import mask as coco_mask

TRAIN, VALID_U, VALID = "0a1b2c3d4e5f", "ffee00112233", "deadbeef0000"
LENGTHS = {TRAIN: 4, VALID_U: 3, VALID: 2}
#: Object -> its number for `walking_mask`, and the frames in which it is visible.
OBJECTS = {7: (1, (0, 1, 3)), 10: (2, (0, 1, 2)), 20: (1, (0, 1, 2)), 21: (2, (1,)), 22: (3, (0, 2))}
OF_VIDEO = {TRAIN: (7, 10), VALID_U: (20, 21, 22)}


def rle(mask: np.ndarray) -> dict[str, Any]:
    """A mask (h, w) bool in COCO's compressed form."""
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}


def object_mask(anno: int, index: int) -> np.ndarray:
    """The mask of an object in frame `index`, as true as it is visible there."""
    number, visible = OBJECTS[anno]
    mask = walking_mask(number, index)
    return mask if index in visible else np.zeros_like(mask)


def mask_list(anno: int, length: int) -> list[dict[str, Any] | None]:
    """The entry of an object in mask_dict.json."""
    return [rle(object_mask(anno, index)) if index in OBJECTS[anno][1] else None for index in range(length)]


def expression(text: str, *annos: int) -> dict[str, Any]:
    """An expression about some objects, or about none."""
    return {"exp": text, "obj_id": [anno % 10 for anno in annos], "anno_id": list(annos)}


EXPRESSIONS: dict[str, dict[str, dict[str, Any]]] = {
    TRAIN: {
        "0": expression(" The seal  swimming left", 7),
        "1": expression("two seals", 10, 7),
        "2": expression("a bird that flies", *()),
        "3": expression("both seals", 7, 10),
    },
    VALID_U: {
        "0": expression("the cat", 20),
        "1": expression("cats that jump", 21, 22),
        "2": expression("the dog that barks", *()),
        "3": {**expression("all three", 20, 21, 22), "audio": "x.wav"},
    },
    VALID: {"0": {"exp": "the boat"}, "1": {"exp": "no boat"}},
}
FOLDERS = {"train": TRAIN, "valid_u": VALID_U, "valid": VALID}


def entry(video: str) -> dict[str, Any]:
    """The entry of a video in meta_expressions.json."""
    names = [f"{index:05d}" for index in range(LENGTHS[video])]
    return {"expressions": EXPRESSIONS[video], "vid_id": 3, "frames": names}


def write_entries(raw: Path, split: str, videos: Any, file: str = "meta_expressions.json") -> Path:
    """Writes the file of expressions of a split. Returns its path."""
    path = raw / split / file
    path.write_text(json.dumps({"videos": videos}))
    return path


def write_masks(raw: Path, split: str, masks: Any) -> Path:
    """Writes mask_dict.json of a split. Returns its path."""
    path = raw / split / "mask_dict.json"
    path.write_text(json.dumps(masks))
    return path


def masks_of(split: str) -> dict[str, list]:
    """The content of mask_dict.json of a split."""
    video = FOLDERS[split]
    return {str(anno): mask_list(anno, LENGTHS[video]) for anno in OF_VIDEO[video]}


def write_mevis(raw: Path) -> Path:
    """Writes a video for each split. Returns `raw`."""
    for split, video in FOLDERS.items():
        for index in range(LENGTHS[video]):
            write_jpeg(raw / split / "JPEGImages" / video / f"{index:05d}.jpg", frame(index))
        write_entries(raw, split, {video: entry(video)})
        if split != "valid":
            write_masks(raw, split, masks_of(split))
    return raw
