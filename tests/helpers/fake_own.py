"""Writes a small folder of own clips: a clip with palette masks, a folder of frames with masks in COCO's RLE."""

from __future__ import annotations

import json
from pathlib import Path

from fake_datasets import frame, write_clip, write_jpeg
from fake_mevis import rle
from fake_video_folders import walking_mask, write_labels

SENTENCES = """\
# video, object, sentence
dog,1,the brown dog, on the left
dog.mp4, 2 , the cat
dog, 1+2, both animals

my cats, 3, a white cat
"""
#: Video -> labelled frame -> its objects.
LABELLED = {
    "dog": {0: [1, 2], 3: [1], 7: [1, 2], 9: [2], 11: [1, 2]},
    "my cats": {0: [3], 1: [3]},
}
#: The frames of "my cats", in order.
NAMES = ("IMG_8", "IMG_9", "IMG_10")


def write_own(raw: Path) -> Path:
    """Returns `raw`."""
    write_clip(raw / "videos/dog.mp4", length=12)
    for index, objects in LABELLED["dog"].items():
        masks = {instance: walking_mask(instance, index) for instance in objects}
        write_labels(raw / f"masks/dog/{index:0{1 + index % 5}d}.png", masks)
    for index, name in enumerate(NAMES):
        write_jpeg(raw / f"videos/my cats/{name}.jpg", frame(index))
    entries = {NAMES[index]: {"3": rle(walking_mask(3, index))} for index in LABELLED["my cats"]}
    (raw / "masks/my cats.json").write_text(json.dumps(entries))
    (raw / "sentences.txt").write_text(SENTENCES)
    return raw
