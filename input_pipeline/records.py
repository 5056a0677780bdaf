"""The format of a record: a frame pair with all of its instances and sentences, so no frame is stored twice.

The records of a dataset lie in DATA_DIR/<dataset>/<VERSION>/, in the layout of TensorFlow Datasets
(`tfds.builder_from_directory` opens it). `record_writer` writes them, `pipeline` reads them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from input_pipeline.images import encode_frame, encode_labels, encode_mask
from input_pipeline.types import FramePair

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

#: Instance id of a sentence whose ground truth is not published.
NO_INSTANCE = -1

#: A frame pair as `record_features` describes it, images encoded.
Record = dict[str, Any]


def record_features() -> tfds.features.FeaturesDict:
    """The fields of a record at the original image size. Frames are JPEG or PNG, masks PNG."""
    import tensorflow_datasets as tfds  # slow to import, and not needed by the workers that encode records

    image = tfds.features.Image(shape=(None, None, 3))  # JPEG or PNG
    # The `doc` strings are stored next to the records.
    return tfds.features.FeaturesDict(
        {
            "video": tfds.features.Text(),
            "frame_index": tfds.features.Scalar(np.int64),
            "height": tfds.features.Scalar(np.int64),
            "width": tfds.features.Scalar(np.int64),
            "frame": image,
            "earlier_frame": image,
            "earlier_rule": tfds.features.Text(),
            "labels": tfds.features.Scalar(np.object_, doc="PNG with a byte a pixel, see FramePair; empty for none"),
            "instances": tfds.features.Sequence(
                {
                    "id": tfds.features.Scalar(np.int64),
                    "mask": tfds.features.Scalar(np.object_, doc="PNG with one bit a pixel"),
                }
            ),
            "sentences": tfds.features.Sequence(
                {
                    "text": tfds.features.Text(),
                    "instance": tfds.features.Scalar(np.int64, doc=f"{NO_INSTANCE} where the truth is not published"),
                    "group": tfds.features.Text(),
                    "expression": tfds.features.Text(),
                }
            ),
        }
    )


def encode_record(pair: FramePair) -> Record:
    """Converts a frame pair to a record. Frames that come as JPEG or PNG files keep their bytes."""
    height, width = pair.frame.shape[:2]
    frame, earlier_frame = pair.files or (encode_frame(pair.frame), encode_frame(pair.earlier_frame))
    return {
        "video": pair.video,
        "frame_index": pair.frame_index,
        "height": height,
        "width": width,
        "frame": frame,
        "earlier_frame": earlier_frame,
        "earlier_rule": pair.earlier_rule,
        "labels": b"" if pair.labels is None else encode_labels(pair.labels),
        "instances": [{"id": instance, "mask": encode_mask(mask)} for instance, mask in pair.masks.items()],
        "sentences": [
            {
                "text": sentence.text,
                "instance": NO_INSTANCE if sentence.instance is None else sentence.instance,
                "group": sentence.group,
                "expression": sentence.expression,
            }
            for sentence in pair.sentences
        ],
    }
