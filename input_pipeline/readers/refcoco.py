"""Readers of RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: still images of COCO, for pre-training.

    <set>/instances.json, <set>/refs(unc).p                 <set>: refcoco, refcoco+, refcocog, grefcoco
    <set>/instances_<set>_<split>.json                      or the form to which other code converts them
    train2014/COCO_train2014_<%012d>.jpg                    COCO's training images

See `refcoco_annotations` for the files. An image becomes a frame pair: the earlier frame is a small warp of it, as if
the camera had moved, which depends on nothing but the seed and the image's name.

Sources: Kazemzadeh et al., EMNLP 2014; Yu et al., ECCV 2016 (arXiv 1608.00272); Mao et al., CVPR 2016
(https://github.com/lichengunc/refer); Liu et al., CVPR 2023 (https://github.com/henghuiding/gRefCOCO). Videos made of
images by random warps: Wu et al., CVPR 2022 (ReferFormer).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from input_pipeline.coco_masks import decode_rle, rasterize_polygons
from input_pipeline.errors import UserError
from input_pipeline.files import open_regular_file
from input_pipeline.images import decode_frame, encode_frame
from input_pipeline.readers.raw_files import MASK_SIZE, NOT_IN_FRAME, SkippedItems, read_frame
from input_pipeline.readers.refcoco_annotations import Annotations, MaskPlace, Picture, read_converted, read_published
from input_pipeline.report import format_skipped
from input_pipeline.types import FramePair, Sentence, Skipped, target_group

INSTANCES = "instances.json"
IMAGES = ("train2014", "images/train2014", "coco/train2014", "images/mscoco/images/train2014")
#: Limit for one annotation; the largest of COCO have some 10 kB.
MAX_ANNOTATION_BYTES = 2**24
#: The warp's largest rotation in degrees, shift and change of size as fractions of the image.
ROTATION, SHIFT, SCALE = 4.0, 0.03, 0.03

HOW_TO_GET = """\
The files belong in one folder:
  {set}/{instances}, {set}/{refs}     from {source}
  train2014/                              COCO's images, https://cocodataset.org: 2014 Train images
Unpack all into DIR and run
  python -m input_pipeline.prepare --dataset={dataset} --raw=DIR --data_dir=DATA_DIR"""


@dataclasses.dataclass(frozen=True)
class RefCOCO:
    """RefCOCO as downloaded; the methods are those of `input_pipeline.types.Reader`. A "video" is an image.

    Attributes:
      raw: folder that contains `refcoco` and `train2014`, or the files of `refcoco` itself.
      interval: has no meaning.
      seed: of the warps.
    """

    raw: Path
    interval: int = 1
    seed: int = 0

    #: Name of the folder, and in the names of converted files.
    NAME: ClassVar[str] = "refcoco"
    DATASET: ClassVar[str] = "refcoco"
    SPLITS: ClassVar[tuple[str, ...]] = ("train", "val", "testA", "testB")
    #: Files of references, the preferred one first.
    REFS: ClassVar[tuple[str, ...]] = ("refs(unc).p",)
    SOURCE: ClassVar[str] = "https://github.com/lichengunc/refer"
    SEVERAL: ClassVar[bool] = False

    def splits(self) -> tuple[str, ...]:
        """Those with a valid sentence. Raises UserError if files are missing or can't be read."""
        return tuple(self._videos[0])

    def videos(self, split: str) -> list[str]:
        return sorted(self._videos[0][split])

    def skipped(self) -> tuple[Skipped, ...]:
        return self.annotations.skipped + self._videos[1]

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        counts: dict[str, tuple[int, int | None]] = {}
        for split, videos in self._videos[0].items():
            pictures = videos.values()
            counts[f"{split} images"] = len(pictures), None
            counts[f"{split} image files"] = sum((self._images / picture.file).exists() for picture in pictures), None
            counts[f"{split} sentences"] = sum(len(picture.phrases) for picture in pictures), None
            if self.SEVERAL:
                without = sum(not phrase.objects for picture in pictures for phrase in picture.phrases)
                counts[f"{split} sentences without a target"] = without, None
        return counts

    @functools.cached_property
    def annotations(self) -> Annotations:
        """The annotation files, read once. Raises UserError if they are missing or can't be read."""
        skipped = SkippedItems()
        folder = next((f for f in (self.raw / self.NAME, self.raw) if self._has_annotations(f)), None)
        if folder is None:
            raise UserError(f"{self.raw} lacks {self.NAME}/{INSTANCES} or {self.NAME}/{self.REFS[0]}.\n{self._help()}")
        refs = [folder / name for name in self.REFS if (folder / name).exists()]
        if (folder / INSTANCES).exists() and refs:
            for other in refs[1:]:
                skipped.append(Skipped(str(other), f"not read, since {refs[0].name} lies beside it"))
            annotations = read_published(folder / INSTANCES, refs[0], self.SPLITS, self.SEVERAL, skipped)
        else:
            annotations = read_converted(self._converted_files(folder), skipped)
        if "train" in annotations.pictures:  # in training, unless it is chosen, every sentence has a target
            annotations = self._without_no_target(annotations)
        if not annotations.pictures:
            reasons = format_skipped(annotations.skipped)
            raise UserError(f"{folder} has no valid sentence.\n{reasons}\n{self._help()}")
        return annotations

    def _help(self) -> str:
        names = {"set": self.NAME, "instances": INSTANCES, "refs": self.REFS[0], "dataset": self.DATASET}
        return HOW_TO_GET.format(source=self.SOURCE, **names)

    def _has_annotations(self, folder: Path) -> bool:
        published = (folder / INSTANCES).exists() and any((folder / name).exists() for name in self.REFS)
        return published or bool(self._converted_files(folder))

    def _converted_files(self, folder: Path) -> dict[str, Path]:
        """Split -> its file in the converted form."""
        files = {split: folder / f"instances_{self.NAME}_{split}.json" for split in self.SPLITS}
        return {split: file for split, file in files.items() if file.exists()}

    def _without_no_target(self, annotations: Annotations) -> Annotations:
        return annotations

    @functools.cached_property
    def _images(self) -> Path:
        """The folder of images. Raises UserError if there is none."""
        around = (self.raw, self.raw.parent)
        found = [folder / name for folder in around for name in IMAGES if (folder / name).is_dir()]
        if not found:
            raise UserError(f"{self.raw} lacks {IMAGES[0]}, the folder of images.\n{self._help()}")
        return found[0]

    @functools.cached_property
    def _videos(self) -> tuple[dict[str, dict[str, Picture]], tuple[Skipped, ...]]:
        """Split -> video -> image, and images that were left out.

        A video has the name of its image, with the split if another one has this name, as of an image of two splits.
        """
        videos: dict[str, dict[str, Picture]] = {}
        taken: set[str] = set()
        skipped = SkippedItems()
        for split in (split for split in self.SPLITS if split in self.annotations.pictures):
            for picture in self.annotations.pictures[split]:
                stem = Path(picture.file).stem
                name = next((name for name in (stem, f"{stem}-{split}") if name not in taken), None)
                if name is None:
                    where = f"{self.raw}: image {picture.file} of {split}"
                    skipped.append(Skipped(where, "two images before it have the image's name"))
                    continue
                taken.add(name)
                videos.setdefault(split, {})[name] = picture
        return videos, tuple(skipped)

    def read(self, video: str) -> Iterator[FramePair | Skipped]:
        """Yields the frame pair made of an image, with all its sentences, or why there is none.

        In "train", sentences are left out whose target has no pixel or whose mask can't be read.
        """
        split, picture = next((split, videos[video]) for split, videos in self._videos[0].items() if video in videos)
        path = self._images / picture.file
        try:
            frame, content = read_frame(path, "image")
            if frame.shape[:2] != picture.size:
                raise UserError(f"{MASK_SIZE}, by the annotation file")
        except UserError as error:
            yield Skipped(str(path), str(error))
            return
        places, masks = self.annotations.masks[split], {}
        instances: dict[tuple[int, ...], int] = {(): 0}
        sentences = []
        for phrase in picture.phrases:
            instance = instances.setdefault(phrase.objects, len(instances))
            where = f"{path}: sentence {phrase.name} ({phrase.text[:60]})"
            try:
                if instance not in masks:
                    masks[instance] = _union([places[i] for i in phrase.objects], picture.size)
            except (OSError, ValueError, TypeError, RecursionError, KeyError) as error:
                yield Skipped(f"{where}: {error}", "the mask can't be read")
                if split != "train":  # predicted, but not scored
                    sentences.append(Sentence(phrase.text, None, "", phrase.name))
                continue
            if split == "train" and phrase.objects and not masks[instance].any():
                yield Skipped(where, NOT_IN_FRAME)
                continue
            group = target_group(len(phrase.objects)) if self.SEVERAL else ""
            sentences.append(Sentence(phrase.text, instance, group, phrase.name))
        used = {sentence.instance for sentence in sentences}
        if sentences:
            earlier = encode_frame(warp(frame, f"{self.seed}/{picture.file}"))
            planes = {instance: mask for instance, mask in masks.items() if instance in used}
            files = content, earlier
            yield FramePair(
                video, 0, frame, decode_frame(earlier), "warp of the image", planes, tuple(sentences), files=files
            )


@dataclasses.dataclass(frozen=True)
class RefCOCOPlus(RefCOCO):
    """RefCOCO+, whose sentences name no places."""

    NAME = "refcoco+"
    DATASET = "refcoco_plus"


@dataclasses.dataclass(frozen=True)
class RefCOCOg(RefCOCO):
    """RefCOCOg, in the splits of UMD, or in those of Google, which share images, if only these are there."""

    NAME = "refcocog"
    DATASET = "refcocog"
    SPLITS = ("train", "val", "test")
    REFS = ("refs(umd).p", "refs(google).p")


@dataclasses.dataclass(frozen=True)
class GRefCOCO(RefCOCO):
    """gRefCOCO: sentences about one, several or no objects.

    Attributes:
      no_target_sentences: whether "train" has sentences without a target, with empty masks. The other splits have them.
    """

    no_target_sentences: bool = False

    NAME = "grefcoco"
    DATASET = "grefcoco"
    REFS = ("grefs(unc).json", "grefs(unc).p")
    SOURCE = "https://github.com/henghuiding/gRefCOCO"
    SEVERAL = True

    def _without_no_target(self, annotations: Annotations) -> Annotations:
        if self.no_target_sentences:
            return annotations
        skipped, pictures = SkippedItems(annotations.skipped), []
        for picture in annotations.pictures["train"]:
            for phrase in picture.phrases:
                if not phrase.objects:
                    reason = "sentence without a target, left out of train (config.no_target_sentences)"
                    skipped.append(Skipped(f"{picture.file}: sentence {phrase.name}", reason))
            if phrases := tuple(phrase for phrase in picture.phrases if phrase.objects):
                pictures.append(dataclasses.replace(picture, phrases=phrases))
        splits = {**annotations.pictures, "train": tuple(pictures)}
        splits = {split: images for split, images in splits.items() if images}
        return Annotations(splits, annotations.masks, tuple(skipped))


def _union(places: list[MaskPlace], size: tuple[int, int]) -> np.ndarray:
    """The union of the masks of some annotations, (h, w) bool; empty for none."""
    union = np.zeros(size, bool)
    for place in places:
        if place.end - place.begin > MAX_ANNOTATION_BYTES:
            raise ValueError("an annotation that is larger than any")
        with open_regular_file(place.path) as file:
            file.seek(place.begin)
            union |= decode_segmentation(json.loads(file.read(place.end - place.begin))["segmentation"], size)
    return union


def decode_segmentation(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Decodes the mask of a COCO annotation, polygons or run-length encoded.

    Returns:
      (h, w) bool.

    Raises:
      ValueError, TypeError: it is not a mask of this size.
    """
    if isinstance(segmentation, list):
        return rasterize_polygons(segmentation, size)
    return decode_rle(segmentation, size)


def warp(frame: np.ndarray, name: str) -> np.ndarray:
    """Turns, shifts and resizes an image a little, by amounts that follow from a name; mirrored beyond its border.

    Args:
      frame: (H, W, 3) uint8 RGB.
      name: seed and image.

    Returns:
      (H, W, 3) uint8.
    """
    height, width = frame.shape[:2]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    rotation, x, y, scale = rng.uniform(-1, 1, 4) * (np.deg2rad(ROTATION), SHIFT * width, SHIFT * height, SCALE)
    margin = int(np.ceil((SHIFT + SCALE + np.deg2rad(ROTATION)) * max(height, width))) + 2
    padded = np.pad(frame, ((margin, margin), (margin, margin), (0, 0)), "symmetric")
    # Pixel centers of the output -> positions in the padded image.
    cosine, sine = np.cos(rotation) / (1 + scale), np.sin(rotation) / (1 + scale)
    center_x, center_y = width / 2, height / 2
    coefficients = (
        cosine,
        -sine,
        center_x + x - cosine * center_x + sine * center_y + margin,
        sine,
        cosine,
        center_y + y - sine * center_x - cosine * center_y + margin,
    )
    image = Image.fromarray(padded).transform(
        (width, height), Image.Transform.AFFINE, tuple(map(float, coefficients)), Image.Resampling.BILINEAR
    )
    return np.asarray(image)
