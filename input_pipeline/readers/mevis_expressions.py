"""The expressions of MeViS: the entry of a video in meta_expressions.json, checked."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container
from typing import NamedTuple

from input_pipeline.readers.raw_files import find_text_error, is_plain_name, shorten
from input_pipeline.types import Sentence, target_group

KNOWN_KEYS = {"exp", "obj_id", "anno_id"}


class Fault(NamedTuple):
    """Where something is wrong in a video's entry, and what; see `Skipped`."""

    where: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Video:
    """A video's entry.

    Attributes:
      frames: in order.
      sentences: in the order of the file. The instance is a key of `targets`.
      targets: target -> ids of the objects whose union it is, sorted; 0 -> () for expressions without a target.
      unknown_keys: how many keys of the expressions are not known, such as those for audio; they are ignored.
    """

    frames: tuple[int, ...] = ()
    sentences: tuple[Sentence, ...] = ()
    targets: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    unknown_keys: int = 0


def parse_video(
    entry: object, known_objects: Container[str] | None, split: str, targets_only: bool, faults: list[Fault]
) -> Video:
    """Parses the entry of a video. Leaves out what is malformed, possibly everything.

    Args:
      entry: as in the file.
      known_objects: the ids in mask_dict.json; None if it is not published.
      split: "train" leaves out expressions without ground truth; the others keep them, with instance None.
      targets_only: leave out expressions without a target.
      faults: gets what is wrong.
    """
    match entry:
        case {"expressions": dict(expressions), "frames": list(names)}:
            pass
        case _:
            faults.append(Fault("", "malformed entry of a video"))
            return Video()
    frames = _parse_frames(names, known_objects is not None, faults)
    if frames is None:
        return Video()
    sentences: list[Sentence] = []
    instances: dict[tuple[int, ...], int] = {(): 0}
    unknown_keys = 0
    for name, expression in expressions.items():
        where = f": expression {shorten(name)}"
        if not isinstance(expression, dict) or not isinstance(text := expression.get("exp"), str):
            faults.append(Fault(where, "the expression is not text"))
            continue
        if not is_plain_name(name):  # it becomes a folder of the submission
            faults.append(Fault(where, "the expression's name is not a plain file name"))
            continue
        if text_error := find_text_error(text):
            faults.append(Fault(where, text_error))
            continue
        unknown_keys += len(expression.keys() - KNOWN_KEYS)
        objects = _parse_objects(expression, known_objects)
        if isinstance(objects, str):
            if split == "train":
                faults.append(Fault(where, objects))
                continue
            if split != "valid" or expression.keys() & {"obj_id", "anno_id"} and known_objects is not None:
                faults.append(Fault(where, f"{objects}: kept without ground truth"))
            sentences.append(Sentence(text.strip(), None, "", name))
            continue
        if targets_only and not objects:
            faults.append(Fault(where, "expression without a target, left out of train (config.no_target_sentences)"))
            continue
        instance = instances.setdefault(objects, len(instances))
        sentences.append(Sentence(text.strip(), instance, target_group(len(objects)), name))
    used = {sentence.instance for sentence in sentences}
    targets = {instance: objects for objects, instance in instances.items() if instance in used}
    return Video(frames, tuple(sentences), targets, unknown_keys)


def _parse_objects(expression: dict, known_objects: Container[str] | None) -> tuple[int, ...] | str:
    """The sorted ids of an expression's objects in mask_dict.json, or what is wrong with them."""
    if known_objects is None or "anno_id" not in expression:
        return "the expression does not name its objects"
    ids = expression["anno_id"]
    if not isinstance(ids, list) or not all(re.fullmatch("[0-9]{1,15}", str(i)) and i is not True for i in ids):
        return "the expression's objects are not a list of whole numbers"
    objects = expression.get("obj_id", ids)
    if not isinstance(objects, list) or len(objects) != len(ids):
        return "obj_id and anno_id of the expression differ in length"
    if any(str(int(i)) not in known_objects for i in ids):
        return "mask_dict.json has no masks of an object of the expression"
    return tuple(sorted({int(i) for i in ids}))


def _parse_frames(names: list[object], with_masks: bool, faults: list[Fault]) -> tuple[int, ...] | None:
    """The indices of a video's frames; None if masks, which have no names, can't be assigned to them."""
    valid = [name for name in names if isinstance(name, str) and re.fullmatch(r"[0-9]{5}", name)]
    frames = tuple(map(int, valid))
    in_order = tuple(sorted(set(frames)))
    if len(valid) < len(names):
        bad = next(name for name in names if name not in valid)
        faults.append(Fault(f": frame {shorten(bad)}", "the frame's name is not a five-digit number"))
    elif frames != in_order and with_masks:
        reason = "the frames are not listed in order: their masks can't be assigned"
        faults.append(Fault(f": {len(frames)} frames", reason))
    else:
        return in_order
    return None if with_masks else in_order
