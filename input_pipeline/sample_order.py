"""The order of the training samples of an epoch, computed from the index alone, so that every process knows all of it.

A batch has a fixed number of slots, one for each group of `sentences_per_frame` sentences. Each slot draws its groups
from its own part of the records, and a process fills a fixed range of slots. It therefore reads only the records of its
own slots, while the batches do not depend on the number of processes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class EpochOrder(NamedTuple):
    """What fills each slot of each batch of an epoch.

    Attributes:
      records: (steps, slots) index of the record.
      sentences: (steps, slots, K) indices of its sentences.
    """

    records: np.ndarray
    sentences: np.ndarray


def epoch_order(
    sentence_counts: np.ndarray,
    sentences_per_frame: int,
    slots: int,
    shuffle_buffer: int,
    seed: int,
    epoch: int,
    sentences_per_epoch: int = 0,
) -> EpochOrder:
    """Shuffles the records and the sentences of each, and divides them among the slots.

    Every sentence occurs once, apart from the groups that don't fill a last batch; and if the number of sentences of a
    record is not a multiple of `sentences_per_frame`, its last group is filled up with sentences of its first. Only at
    the border between two slots are the sentences of a record divided among slots.

    Args:
      sentence_counts: (n,) number of sentences of each record.
      sentences_per_frame: K, sentences in a group.
      slots: groups in a batch.
      shuffle_buffer: the sentences of a record are spread over this many groups, counted over all slots.
      seed: of the random numbers, with `epoch`.
      sentences_per_epoch: only so many random sentences of each record occur; 0 for all.
    """
    # RandomState, because numpy guarantees that its numbers never change.
    rng = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((seed % 2**64, epoch))))
    records = rng.permutation(len(sentence_counts))
    counts = sentence_counts[records]
    starts = np.cumsum(counts) - counts
    record_of_sentence = np.repeat(np.arange(len(records)), counts)
    by_record = np.lexsort((rng.random_sample(record_of_sentence.size), record_of_sentence))
    shuffled = by_record - starts[record_of_sentence]

    # The first of a record's shuffled sentences, where only some occur.
    used_counts = np.minimum(counts, sentences_per_epoch) if sentences_per_epoch else counts
    group_counts = -(-used_counts // sentences_per_frame)
    record_of_group = np.repeat(np.arange(len(records)), group_counts)
    number_in_record = np.arange(record_of_group.size) - (np.cumsum(group_counts) - group_counts)[record_of_group]
    columns = number_in_record[:, None] * sentences_per_frame + np.arange(sentences_per_frame)
    sentences = shuffled[starts[record_of_group, None] + columns % used_counts[record_of_group, None]]

    steps = record_of_group.size // slots
    # Each group moves by at most `window` steps. The records are in random order already.
    window = max(1, shuffle_buffer // slots)
    order = np.argsort(np.arange(steps) + window * rng.random_sample((slots, steps)), axis=1, kind="stable")
    groups = (order + steps * np.arange(slots)[:, None]).T
    return EpochOrder(records[record_of_group[groups]], sentences[groups])
