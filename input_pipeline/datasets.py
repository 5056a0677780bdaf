"""Which datasets a configuration trains on, validates and evaluates; one or several."""

from __future__ import annotations

from ml_collections import ConfigDict

#: The fields for several datasets.
LISTS = ("training_datasets", "evaluation_datasets", "validation_datasets")

#: (dataset, split)
DatasetSplit = tuple[str, str]


def training_datasets(config: ConfigDict) -> list[str]:
    """The datasets to train on."""
    return [name for name, _ in config.training_datasets] or [config.dataset]


def training_shares(config: ConfigDict) -> list[float]:
    """The share of each of `training_datasets` in the samples; only their ratios matter."""
    return [share for _, share in config.training_datasets] or [1.0]


def evaluated_splits(config: ConfigDict) -> list[DatasetSplit]:
    """What to evaluate: config.evaluation_datasets, or config.evaluation_split of all datasets of the training."""
    return _splits(config.evaluation_datasets) or [
        (name, config.evaluation_split) for name in training_datasets(config)
    ]


def validated_splits(config: ConfigDict) -> list[DatasetSplit]:
    """What to validate a training on, if it is: config.validation_datasets, or as `evaluated_splits`."""
    if config.validation_datasets or not config.validation_split:
        return _splits(config.validation_datasets) or evaluated_splits(config)
    return [(name, config.validation_split) for name in training_datasets(config)]


def all_datasets(config: ConfigDict) -> list[str]:
    """The datasets that a training needs, each once: to train on, to evaluate, and to validate."""
    splits = evaluated_splits(config)
    if config.validation_every_epochs or config.validation_every_steps:
        splits += validated_splits(config)
    return list(dict.fromkeys([*training_datasets(config), *(name for name, _ in splits)]))


def dataset_config(config: ConfigDict, name: str, split: str = "") -> ConfigDict:
    """The configuration for one dataset alone.

    Args:
      config: for several datasets. Its fields raw, frame_interval, frame_rate and published are those of
        config.dataset; the interval of others is that of their records.
      name: of the dataset.
      split: to evaluate; "" for config.evaluation_split.
    """
    split = split or config.evaluation_split
    fields = {"dataset": name, "evaluation_split": split, **dict.fromkeys(LISTS, ())}
    if (name, split) != (config.dataset, config.evaluation_split):
        fields["published"] = ()
    if name != config.dataset:
        fields["raw"] = ""
    config = config.copy_and_resolve_references()
    config.update(fields)
    return config


def label(dataset: str, split: str) -> str:
    """What to call a split of a dataset in names of files, of measures and in tables: "refcoco-val"."""
    return f"{dataset}-{split}"


def _splits(rows: tuple[DatasetSplit, ...]) -> list[DatasetSplit]:
    return [(name, split) for name, split in rows]
