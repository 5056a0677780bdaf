"""Writes small made-up copies of RefCOCO and its kin, as published and as other code converts them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from fake_datasets import HEIGHT, WIDTH, frame, write_jpeg

#: Annotation -> its segmentation: polygons, two parts, one that leaves the image, run-length encoding, and a crowd.
SEGMENTATIONS: dict[int, Any] = {
    11: [[4.5, 3.2, 30.1, 5.0, 28.7, 22.9, 10.0, 40.25]],
    12: [[2.0, 2.0, 12.0, 2.0, 12.0, 9.5, 2.0, 9.5], [40.3, 30.3, 60.0, 30.0, 50.2, 46.6]],
    13: [[50.0, -4.0, 70.0, 10.0, 55.0, 60.0]],
    14: {"size": [HEIGHT, WIDTH], "counts": [480, 96, HEIGHT * WIDTH - 576]},
    15: {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]},
    21: [[1, 1, 20, 1, 20, 20]],
}
IMAGE_OF = {anno: 1 if anno < 20 else 2 for anno in SEGMENTATIONS}
NAMES = {1: "COCO_train2014_000000000001", 2: "COCO_train2014_000000000002"}


def annotation(anno: int) -> dict[str, Any]:
    """An entry of "annotations" in instances.json."""
    content = {"id": anno, "image_id": IMAGE_OF[anno], "segmentation": SEGMENTATIONS[anno], "category_id": 1}
    return {**content, "iscrowd": int(anno == 15), "area": 5.5, "bbox": [0, 0, 1, 1]}


def image(number: int) -> dict[str, Any]:
    """An entry of "images" in instances.json."""
    return {"id": number, "file_name": f"{NAMES[number]}.jpg", "height": HEIGHT, "width": WIDTH, "license": 3}


def ref(objects: Any, split: str, first: int, *texts: str, image_id: int = 1) -> dict[str, Any]:
    """A reference whose sentences are numbered from `first`."""
    sentences: list[dict] = [
        {"sent_id": first + i, "sent": text, "raw": text.upper(), "tokens": text.split()}
        for i, text in enumerate(texts)
    ]
    file = f"{NAMES[image_id]}_{first}.jpg"  # with a suffix, as in the real file: it names no file
    content = {"ref_id": first, "ann_id": objects, "image_id": image_id, "category_id": 1, "split": split}
    return {**content, "file_name": file, "sent_ids": [s["sent_id"] for s in sentences], "sentences": sentences}


def write_instances(folder: Path) -> None:
    """Writes instances.json and the images beside the folder."""
    folder.mkdir(parents=True)
    content = {"info": {}, "images": [image(1), image(2)], "annotations": [annotation(i) for i in SEGMENTATIONS]}
    (folder / "instances.json").write_text(json.dumps({**content, "categories": [{"id": 1, "name": "x"}]}))
    for number, name in NAMES.items():
        write_jpeg(folder.parent / "train2014" / f"{name}.jpg", textured(number))


def textured(number: int) -> np.ndarray:
    """An image that a warp changes."""
    return frame(number) + np.random.default_rng(number).integers(0, 60, (HEIGHT, WIDTH, 3)).astype(np.uint8)


REFS = [
    ref(11, "train", 100, "the left man ", "man in red"),
    ref(12, "train", 102, "two parts"),
    ref(21, "val", 103, "a dog", image_id=2),
    ref(14, "testA", 104, "top", image_id=1),
]
GREFS = [
    ref([11], "train", 200, "the man"),
    ref([11, 13], "train", 201, "both men", "the men"),
    ref([-1], "train", 203, "a green horse"),
    ref([21], "val", 204, "a dog", image_id=2),
    ref([-1], "val", 205, "no dog", image_id=2),
]


def write_refcoco(
    raw: Path, name: str = "refcoco", file: str = "refs(unc).p", refs: Any = None, protocol: int = 2
) -> Path:
    """Writes a dataset as published. Returns `raw`."""
    write_instances(raw / name)
    refs = (GREFS if name == "grefcoco" else REFS) if refs is None else refs
    content = json.dumps(refs).encode() if file.endswith(".json") else pickle.dumps(refs, protocol)
    (raw / name / file).write_bytes(content)
    return raw


def write_converted(raw: Path, name: str = "refcoco") -> Path:
    """Writes the same references as MTTR and ReferFormer convert them. Returns `raw`."""
    write_instances(raw / name)
    (raw / name / "instances.json").unlink()
    for split in ("train", "val", "testA"):
        images, annotations = [], []
        for its_ref in (r for r in REFS if r["split"] == split):
            for sentence in its_ref["sentences"]:
                number = {"id": len(images) + 1}
                caption = {"caption": sentence["sent"], "original_id": its_ref["image_id"], "dataset_name": name}
                images.append({**image(its_ref["image_id"]), **number, **caption})
                anno = annotation(its_ref["ann_id"])
                annotations.append({**anno, **number, "image_id": number["id"], "original_id": anno["id"]})
        content = {"info": "", "images": images, "annotations": annotations, "categories": []}
        (raw / name / f"instances_{name}_{split}.json").write_text(json.dumps(content))
    return raw
