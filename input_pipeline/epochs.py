"""How long an epoch is, and which datasets fill it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from ml_collections import ConfigDict

from input_pipeline.datasets import dataset_config, training_datasets, training_shares
from input_pipeline.errors import UserError
from input_pipeline.record_dataset import split_counts
from input_pipeline.sample_order import epoch_positions

#: In an epoch of several datasets, whose order is kept in memory, up to 60 bytes for each sample.
MAX_JOINT_SAMPLES = 50_000_000


def steps_per_epoch(config: ConfigDict) -> int:
    """Returns the number of complete batches in one pass through the split "train" of config.dataset.

    Where there are several datasets, they fill their shares of these batches.

    Raises:
      UserError: there are no records, fewer samples than one batch, or too many by the shares of several datasets.
    """
    names, shares = training_datasets(config), [Fraction(share) for share in training_shares(config)]
    samples = groups_per_pass(config) * config.sentences_per_frame
    own_share = shares[names.index(config.dataset)] / sum(shares)
    steps = int(samples / own_share) // config.batch_size
    if steps * config.batch_size > MAX_JOINT_SAMPLES and len(names) > 1:
        raise UserError(
            f"The share of {config.dataset} in config.training_datasets is {float(own_share):.3g}: an epoch, a pass "
            f"through it, would take {steps * config.batch_size:,} samples. Raise its share, or let config.dataset be "
            "another one of them."
        )
    if not steps:
        joint = f", where {config.dataset} has a share of {float(own_share):.3g}" if len(names) > 1 else ""
        largest = int(samples / own_share) // config.sentences_per_frame * config.sentences_per_frame
        unit = "number of devices"
        if config.sentences_per_frame > 1:
            unit += f" x config.sentences_per_frame, {config.sentences_per_frame}"
        raise UserError(
            f"{samples} training samples don't fill a batch of {config.batch_size}{joint}: lower config.batch_size to "
            f"{largest} or less, a multiple of the {unit}. On one device, --config.batch_size={largest} works."
        )
    return steps


def groups_per_pass(config: ConfigDict) -> int:
    """Returns the number of groups of config.sentences_per_frame sentences in the split "train"."""
    lengths = split_counts(config, "train")["sentences_per_frame_pair"]
    return sum(
        frame_pairs * -(-min(int(length), config.sentences_per_epoch or int(length)) // config.sentences_per_frame)
        for length, frame_pairs in lengths.items()
    )


def describe_epoch(config: ConfigDict) -> list[str]:
    """Describes the share of each dataset in an epoch, in a line each; nothing if there is only one.

    Raises:
      UserError: as `steps_per_epoch`.
    """
    names = training_datasets(config)
    if len(names) == 1:
        return []
    groups = [groups_per_pass(dataset_config(config, name)) for name in names]
    positions = positions_of_datasets(config, steps_per_epoch(config))
    total = sum(map(len, positions))
    return [
        f"{name}: {len(own) / total:.1%} of the samples; an epoch passes {len(own) / count:.3g} times through it"
        for name, count, own in zip(names, groups, positions, strict=True)
    ]


def positions_of_datasets(config: ConfigDict, steps: int) -> list[np.ndarray]:
    """The positions of an epoch that each dataset fills, see `epoch_positions`.

    Raises:
      UserError: a dataset has no samples, or none of the positions.
    """
    slots = config.batch_size // config.sentences_per_frame
    positions = epoch_positions(training_shares(config), steps * slots)
    for name, own in zip(training_datasets(config), positions, strict=True):
        if not groups_per_pass(dataset_config(config, name)):
            raise UserError(f"The split 'train' of {name} has no sentences to train on: leave the dataset out.")
        if not len(own):
            raise UserError(
                f"The share of {name} in config.training_datasets gives it none of the {steps * slots} places in an "
                "epoch: raise it, or leave the dataset out."
            )
    return positions
