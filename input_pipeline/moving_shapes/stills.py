"""Made-up still images in RefCOCO's format, to pre-train on before Moving Shapes: see configs/shapes_stills.py.

    python -m input_pipeline.moving_shapes.stills --output=data/stills/raw/refcoco

The images are frames of scenes drawn like those of Moving Shapes, but other ones. Their sentences are about what a
still image can show: color, kind, size and position.
"""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from input_pipeline.errors import UserError, exit_on_error
from input_pipeline.files import expand_home
from input_pipeline.moving_shapes.expressions import true_expressions
from input_pipeline.moving_shapes.raw_layout import new_folder
from input_pipeline.moving_shapes.scenes import make_scene
from input_pipeline.moving_shapes.shapes import ANNOTATED_FRAMES
from input_pipeline.moving_shapes.wording import make_sentences
from input_pipeline.workers import worker_pool

SEED = 20_000  # of all scenes; that of Moving Shapes is 0
MOTION_PREDICATES = ("fastest", "slowest", "like")
IMAGES, SET = "train2014", "refcoco"  # folders of COCO and of its references


class _Still(NamedTuple):
    """What one image adds to instances.json and to the references."""

    image: dict[str, Any]
    annotations: list[dict[str, Any]]
    refs: list[dict[str, Any]]


def write_stills(raw: Path, train: int = 3000, val: int = 200, workers: int | None = None) -> None:
    """Writes the images, `instances.json` and `refs(unc).p`. The files do not depend on the number of workers.

    Args:
      raw: a folder that does not exist yet.
      train, val: numbers of images.
      workers: number of processes; None for one per core.

    Raises:
      UserError: `raw` exists.
    """
    if raw.exists():
        raise UserError(f"{raw} exists. Name another folder, or move it away.")
    with new_folder(raw) as unfinished:
        (unfinished / IMAGES).mkdir()
        (unfinished / SET).mkdir()
        jobs = [(unfinished, number, "train" if number <= train else "val") for number in range(1, train + val + 1)]
        with worker_pool(workers) as pool:
            stills = list(tqdm(pool.map(_write_still, jobs, chunksize=8), "Drawing images", len(jobs), unit="image"))
        instances = {
            "images": [still.image for still in stills],
            "annotations": [annotation for still in stills for annotation in still.annotations],
            "categories": [{"id": 1, "name": "shape"}],
        }
        (unfinished / SET / "instances.json").write_text(json.dumps(instances))
        refs = [ref for still in stills for ref in still.refs]
        (unfinished / SET / "refs(unc).p").write_bytes(pickle.dumps(refs, 2))
    print(f"{len(stills)} images, {sum(len(ref['sentences']) for ref in refs)} sentences: {raw}")


def _write_still(job: tuple[Path, int, str]) -> _Still:
    """Draws an image and describes it."""
    raw, number, split = job
    scene = make_scene(SEED, "train", number)
    frame = ANNOTATED_FRAMES[number % len(ANNOTATED_FRAMES)]
    name = f"COCO_train2014_{number:012d}"
    Image.fromarray(scene.frames[frame - 1]).save(raw / IMAGES / f"{name}.jpg", quality=95, subsampling=0)
    expressions = [
        expression
        for expression in true_expressions(scene.shapes, ANNOTATED_FRAMES)
        if expression.tier != "motion" and expression.predicate not in MOTION_PREDICATES
    ]
    sentences = make_sentences(expressions, np.random.default_rng([SEED, number]), "train")
    height, width = scene.frames.shape[1:3]
    still = _Still({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width}, [], [])
    for shape, mask in enumerate(scene.masks[frame]):
        anno = 10 * number + shape
        common = {"image_id": number, "category_id": 1}
        encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        still.annotations.append(
            {
                **common,
                "id": anno,
                "iscrowd": 0,
                "area": int(mask.sum()),
                "bbox": coco_mask.toBbox(encoded).tolist(),
                "segmentation": {"size": [height, width], "counts": encoded["counts"].decode("ascii")},
            }
        )
        texts = [sentence.text for sentence in sentences if sentence.instance == shape]
        if texts:
            ids = [10 * anno + index for index in range(len(texts))]
            still.refs.append(
                {
                    **common,
                    "ref_id": anno,
                    "ann_id": anno,
                    "split": split,
                    "file_name": f"{name}_{anno}.jpg",
                    "sent_ids": ids,
                    "sentences": [
                        {"sent_id": i, "sent": text, "raw": text, "tokens": text.split()}
                        for i, text in zip(ids, texts, strict=True)
                    ],
                }
            )
    return still


def main() -> None:
    """Parses the command line and writes the images."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.moving_shapes.stills",
        description="Writes made-up still images with sentences and masks in RefCOCO's format.",
    )
    parser.add_argument("--output", type=expand_home, required=True, help="folder to be made, for --config.raw")
    arguments = parser.parse_args()
    with exit_on_error("Interrupted; nothing was written."):
        write_stills(Path(arguments.output))


if __name__ == "__main__":
    main()
