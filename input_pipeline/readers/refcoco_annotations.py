"""The annotation files of RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO, in either form.

As published, in one folder:
    instances.json            COCO's images and annotations (masks), of which some are referred to
    refs(unc).p, refs(umd).p  a pickle: [{"ann_id", "image_id", "split", "sentences": [{"sent_id", "sent"}]}, ...]
    grefs(unc).json           the same for gRefCOCO: "ann_id" is a list, [-1] for no target; grefs(unc).p is also read

As MTTR, ReferFormer and their successors convert them:
    instances_<set>_<split>.json      COCO's form with one "image" for each sentence, its "caption", and its annotation

The file of instances has up to 330 MB. It is read in one pass; the masks stay there until they are needed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from input_pipeline.errors import UserError
from input_pipeline.readers.json_index import iterate_arrays
from input_pipeline.readers.plain_pickle import read_plain_pickle
from input_pipeline.readers.raw_files import find_text_error, is_plain_name, shorten
from input_pipeline.types import Skipped

NO_TARGET_ID = -1
REPEATED_ID = "the id occurs twice: the first is used"

#: Name and size (h, w) of an image's file.
_ImageFile = tuple[str, tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A sentence about an image.

    Attributes:
      name: its id in the dataset.
      text: as annotated.
      objects: ids of the annotations whose union it refers to, sorted; () for none.
    """

    name: str
    text: str
    objects: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image with its sentences; `size` is (h, w)."""

    file: str
    size: tuple[int, int]
    phrases: tuple[Phrase, ...]


class MaskPlace(NamedTuple):
    """Where an annotation lies in its file, in bytes, and the id of its image."""

    path: Path
    begin: int
    end: int
    image: int


@dataclasses.dataclass(frozen=True)
class Annotations:
    """Split -> images, in the order of the file; masks by annotation id, for each split; what was left out."""

    pictures: dict[str, tuple[Picture, ...]]
    masks: dict[str, dict[int, MaskPlace]]
    skipped: tuple[Skipped, ...]


class _Ref(NamedTuple):
    """The sentences about a set of objects, unchecked but for the image and the split."""

    where: str
    split: str
    image: int
    phrases: list[Phrase]


def read_published(
    instances: Path, refs: Path, splits: tuple[str, ...], several: bool, skipped: list[Skipped]
) -> Annotations:
    """Reads instances.json and the file of references.

    Args:
      instances: instances.json.
      refs: the pickle or JSON file of references.
      splits: the names of the splits that exist.
      several: whether a reference may have several objects or none.
      skipped: gets what was left out.

    Raises:
      UserError: a file can't be read.
    """
    parsed = list(_parse_refs(refs, splits, several, skipped))
    annotations = {anno for ref in parsed for phrase in ref.phrases for anno in phrase.objects}
    images, masks, crowds = _read_instances(instances, {ref.image for ref in parsed}, annotations, skipped)
    # Split -> image -> sentences by name. Two ids may stand for one file.
    phrases: dict[str, dict[_ImageFile, dict[str, Phrase]]] = {}
    for ref in parsed:
        if ref.image not in images:
            skipped.append(
                Skipped(f"{ref.where}: image {ref.image}", f"{instances.name} has no valid image of this id")
            )
            continue
        for phrase in ref.phrases:
            where = f"{ref.where}: sentence {phrase.name}"
            kept = _check_objects(where, phrase, ref.image, masks, crowds, skipped)
            if kept is None:
                continue
            of_image = phrases.setdefault(ref.split, {}).setdefault(images[ref.image], {})
            if kept.name in of_image:
                skipped.append(Skipped(where, REPEATED_ID))
            else:
                of_image[kept.name] = kept
    pictures = {
        split: tuple(Picture(*image, tuple(texts.values())) for image, texts in of_split.items())
        for split, of_split in phrases.items()
    }
    return Annotations(pictures, dict.fromkeys(pictures, masks), tuple(skipped))


def _parse_refs(path: Path, splits: tuple[str, ...], several: bool, skipped: list[Skipped]) -> Iterator[_Ref]:
    """The valid references of a file."""
    for number, ref in enumerate(_load_refs(path)):
        where = f"{path}: reference {number}"
        match ref:
            case {
                "ann_id": objects,
                "image_id": image,
                "split": str(split),
                "sentences": list(sentences),
            } if _is_id(image):
                pass
            case _:
                skipped.append(Skipped(where, "malformed reference"))
                continue
        if split not in splits:
            skipped.append(Skipped(f"{where}: {shorten(split)}", "unknown split"))
            continue
        ids = objects if several and isinstance(objects, list) else [objects]
        no_target = several and ids == [NO_TARGET_ID]
        if not no_target and not (ids and all(map(_is_id, ids))):
            skipped.append(Skipped(where, "the objects of the reference are not ids of annotations"))
            continue
        target = () if no_target else tuple(sorted(set(ids)))
        phrases = []
        for sentence in sentences:
            match sentence:
                case {"sent_id": name, "sent": str(text)} if _is_id(name):
                    if error := find_text_error(text):
                        skipped.append(Skipped(f"{where}: sentence {name}", error))
                    else:
                        phrases.append(Phrase(str(name), text.strip(), target))
                case _:
                    skipped.append(Skipped(where, "malformed sentence"))
        yield _Ref(where, split, image, phrases)


def _load_refs(path: Path) -> Iterable[Any]:
    """The references, unchecked. Raises UserError if the file can't be read."""
    if path.suffix == ".json":
        try:
            yield from (item.value for item in iterate_arrays(path))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} can't be read ({error}). Download it again.") from error
        return
    content = read_plain_pickle(path)
    if not isinstance(content, list):
        raise UserError(f"{path} holds no list of references. Download it again.")
    yield from content


def _read_instances(
    path: Path, needed_images: set[int], needed: set[int], skipped: list[Skipped]
) -> tuple[dict[int, _ImageFile], dict[int, MaskPlace], set[int]]:
    """Image id -> its file; annotation id -> its place; ids of crowds. Raises UserError if it can't be read."""
    images: dict[int, _ImageFile] = {}
    masks: dict[int, MaskPlace] = {}
    crowds: set[int] = set()
    image_ids: set[int] = set()
    annotation_ids: set[int] = set()
    try:
        for item in iterate_arrays(path, "images", "annotations"):
            match item.key, item.value:
                case "images", {"id": int(i), "file_name": str(file), "height": int(height), "width": int(width)}:
                    new = i in needed_images and _is_new_id(f"{path}: image", i, image_ids, skipped)
                    if new and not _find_image_error(file, height, width):
                        images[i] = file, (height, width)
                case "annotations", {"id": int(i), "image_id": image} if i in needed and _is_id(image):
                    if _is_new_id(f"{path}: annotation", i, annotation_ids, skipped):
                        masks[i] = MaskPlace(path, item.begin, item.end, image)
                        if item.value.get("iscrowd"):
                            crowds.add(i)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read ({error}). Download it again.") from error
    return images, masks, crowds


def _is_id(number: object) -> TypeGuard[int]:
    """Whether a value is an id: a whole number of 64 bits, short enough for the name of a file."""
    return type(number) is int and 0 <= number < 2**63


def _is_new_id(where: str, number: object, known: set[int], skipped: list[Skipped]) -> bool:
    """Adds an id to those that are known. Returns False, and notes why, if it is none or is known already."""
    if not _is_id(number):
        skipped.append(Skipped(f"{where} {shorten(number)}", "the id is not a whole number of 64 bits"))
        return False
    if number in known:
        skipped.append(Skipped(f"{where} {number}", REPEATED_ID))
        return False
    known.add(number)
    return True


def _check_objects(
    where: str, phrase: Phrase, image: int, masks: dict[int, MaskPlace], crowds: set[int], skipped: list[Skipped]
) -> Phrase | None:
    """The sentence without objects that are crowds; None if it has to be left out."""
    if any(i not in masks or masks[i].image != image for i in phrase.objects):
        skipped.append(Skipped(where, "the image has no annotation of an object of the sentence"))
        return None
    objects = tuple(i for i in phrase.objects if i not in crowds)
    if len(objects) < len(phrase.objects):
        note = "" if objects else ": the sentence is left out"
        skipped.append(Skipped(where, f"an object of the sentence is a crowd (iscrowd), which has no mask{note}"))
    return None if phrase.objects and not objects else dataclasses.replace(phrase, objects=objects)


def read_converted(paths: dict[str, Path], skipped: list[Skipped]) -> Annotations:
    """Reads the files of splits in the converted form. Raises UserError if one can't be read."""
    pictures: dict[str, tuple[Picture, ...]] = {}
    masks: dict[str, dict[int, MaskPlace]] = {}
    for split, path in paths.items():
        texts: dict[int, tuple[_ImageFile, str]] = {}
        masks[split] = {}
        of_image: dict[int, list[int]] = {}
        crowds: set[int] = set()
        image_ids: set[int] = set()
        annotation_ids: set[int] = set()
        try:
            for item in iterate_arrays(path, "images", "annotations"):
                match item.key, item.value:
                    case "images", {"id": int(i), "file_name": str(file), "height": int(h), "width": int(w), **more}:
                        if not _is_new_id(f"{path}: image", i, image_ids, skipped):
                            continue
                        if error := _find_image_error(file, h, w) or _find_caption_error(more.get("caption")):
                            skipped.append(Skipped(f"{path}: image {i}", error))
                        else:
                            texts[i] = (file, (h, w)), str(more["caption"]).strip()
                    case "annotations", {"id": int(i), "image_id": image, **more} if _is_id(image):
                        if not _is_new_id(f"{path}: annotation", i, annotation_ids, skipped):
                            continue
                        of_image.setdefault(image, []).append(i)
                        masks[split][i] = MaskPlace(path, item.begin, item.end, image)
                        if more.get("iscrowd"):
                            crowds.add(i)
                    case _:
                        skipped.append(Skipped(f"{path}: byte {item.begin}", f"malformed entry of {item.key}"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} can't be read ({error}). Convert the dataset again.") from error
        phrases: dict[_ImageFile, list[Phrase]] = {}
        for i, (image_file, text) in texts.items():
            phrase = Phrase(str(i), text, tuple(sorted(of_image.get(i, []))))
            where = f"{path}: image {i}"
            if not phrase.objects:
                skipped.append(Skipped(where, "the image has no annotation of an object of the sentence"))
            elif kept := _check_objects(where, phrase, i, masks[split], crowds, skipped):
                phrases.setdefault(image_file, []).append(kept)
        if phrases:
            pictures[split] = tuple(Picture(*image, tuple(of_file)) for image, of_file in phrases.items())
    return Annotations(pictures, masks, tuple(skipped))


def _find_image_error(file: str, height: int, width: int) -> str:
    """What is wrong with the name or the size of an image; "" if nothing is."""
    if not is_plain_name(file) or file.startswith("."):  # without suffix, "...jpg" is "..", a folder
        return "the image's name is not a plain file name"
    return "" if min(height, width) > 0 else "the image has no size"


def _find_caption_error(caption: object) -> str:
    """What is wrong with the sentence of an "image" of the converted form; "" if nothing is."""
    return find_text_error(caption) if isinstance(caption, str) else "the image has no caption"
