"""The order of the training samples, computed from the index alone, so that every process knows all of it.

A batch has a fixed number of slots, one for each group of `sentences_per_frame` sentences. Each slot draws its groups
from its own part of the records, and a process fills a fixed range of slots. It therefore reads only the records of its
own slots, while the batches do not depend on the number of processes. For example, with batch_size=4,
sentences_per_frame=1, two processes, and records a to f of two sentences each:

              step 0   step 1   step 2
    slot 0      a1       b2       a2      process 0 reads a, b and c
    slot 1      c2       b1       c1
    slot 2      e1       d2       d1      process 1 reads d, e and f
    slot 3      f1       e2       f2

A position counts the slots of an epoch, step by step: a1 is at position 0, c2 at 1, b2 at 4.

Several datasets in one training share the slots of an epoch by `epoch_positions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class SampleOrder(NamedTuple):
    """What is used in one pass over a dataset, one group of K sentences after the other.

    Attributes:
      records: (n,) index of the record.
      sentences: (n, K) indices of its sentences.
    """

    records: np.ndarray
    sentences: np.ndarray


def sample_order(
    sentence_counts: np.ndarray,
    sentences_per_frame: int,
    slots: np.ndarray,
    shuffle_buffer: int,
    seed: tuple[int, ...],
    sentences_per_epoch: int = 0,
) -> SampleOrder:
    """Shuffles the records and the sentences of each, and divides them among the slots.

    Every sentence occurs once, apart from the groups beyond the first n; and if the number of sentences of a record is
    not a multiple of `sentences_per_frame`, its last group is filled up with sentences of its first. Only at the border
    between two slots are the sentences of a record divided among slots.

    Args:
      sentence_counts: number of sentences of each record.
      sentences_per_frame: K, sentences in a group.
      slots: (n,) the slot that each group fills, in the order of the steps; n is at most the number of groups.
      shuffle_buffer: the sentences of a record are spread over this many groups, counted over all slots.
      seed: of the random numbers, with the number of the pass.
      sentences_per_epoch: only this many random sentences of each record occur; 0 for all.
    """
    # RandomState, because numpy guarantees that its numbers never change.
    rng = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
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

    groups = _divide_groups(slots, shuffle_buffer, rng)
    return SampleOrder(records[record_of_group[groups]], sentences[groups])


def _divide_groups(slots: np.ndarray, shuffle_buffer: int, rng: np.random.RandomState) -> np.ndarray:
    """Gives each slot its part of the groups, and moves each group a little within its slot.

    Returns:
      (n,) the group that is used, in the order of the steps.
    """
    by_slot = np.argsort(slots, kind="stable")
    slots = slots[by_slot]
    _, starts, lengths = np.unique(slots, return_index=True, return_counts=True)
    number_in_slot = np.arange(len(slots)) - np.repeat(starts, lengths)
    # Each group moves by at most `window` groups of its slot. The records are in random order already.
    window = max(1, shuffle_buffer // len(starts))
    groups = np.empty_like(by_slot)
    groups[by_slot] = np.lexsort((number_in_slot + window * rng.random_sample(len(slots)), slots))
    return groups


def epoch_positions(shares: Sequence[float], count: int) -> list[np.ndarray]:
    """Divides the slots of an epoch among datasets by their shares, as evenly as possible at any time.

    Args:
      shares: one for each dataset, above 0; only their ratios matter.
      count: slots of all steps of an epoch.

    Returns:
      For each dataset the positions that it fills, ascending, each step * (slots of a batch) + slot. Their number is
      its share of `count`, rounded up or down.
    """
    total = sum(map(Fraction, shares))
    exact = [Fraction(share) * count / total for share in shares]
    numbers = [int(number) for number in exact]
    by_remainder = sorted(range(len(shares)), key=lambda dataset: numbers[dataset] - exact[dataset])
    for dataset in by_remainder[: count - sum(numbers)]:
        numbers[dataset] += 1
    # If each dataset is spread evenly over an epoch, these are the times of its samples.
    times = np.concatenate([(np.arange(number) + 0.5) / max(number, 1) for number in numbers])
    datasets = np.repeat(np.arange(len(shares)), numbers)
    datasets = datasets[np.lexsort((datasets, times))]
    return [np.flatnonzero(datasets == dataset) for dataset in range(len(shares))]
