"""Types and ranges of all configuration fields: from files, from the command line, from checkpoints."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags
from paths import ROOT
from tiny import tiny_config

from input_pipeline.errors import UserError
from lbdt_jax import metrics
from lbdt_jax.benchmark import __main__ as benchmark_command
from lbdt_jax.cli import explain_flags
from lbdt_jax.config import (
    FIELDS,
    PROTOCOLS,
    TRANSFORMER_FIELDS,
    check_config,
    check_transformer,
    load_config,
    with_defaults,
)
from lbdt_jax.models.resnet import DEPTHS
from lbdt_jax.models.transformer import ACTIVATIONS, TransformerConfig

NAMES = tuple(sorted(file.stem for file in (ROOT / "configs").glob("[a-z]*.py")))
BERT = TransformerConfig(30522, 768, 12, 12, 3072, 512, 0, 2, 0, 1e-12, "gelu")

TEXTS = {name for name in FIELDS if name in tiny_config() and isinstance(tiny_config()[name], str)}
SWITCHES = {
    "model.channel_gates",
    "model.frame_difference",
    "model.rematerialise",
    "global_batch_norm",
    "no_target_sentences",
}
#: Numbers that may be 0.
ZERO = {
    "seed",
    "model.transfer_layers",
    "model.dropout",
    "text_encoder_learning_rate",
    "encoder_learning_rate_factor",
    "warmup_steps",
    "weight_decay",
    "bce_weight",
    "bce_positive_weight",
    "dice_weight",
    "decoded_cache",
    "augment_flip",
    "augment_min_visible",
    "augment_brightness",
    "augment_contrast",
    "augment_saturation",
    "augment_hue",
    "sentences_per_epoch",
    "checkpoint_every_minutes",
    "contact_sheet_samples",
    "evaluation_attention_sheets",
    "validation_every_epochs",
    "validation_every_steps",
    "ema_decay",
    "clip_gradient_norm",
    "focal_weight",
    "focal_alpha",
    "focal_gamma",
}


def config_with(name: str, value: Any) -> dict[str, Any]:
    """The json of a valid configuration but for one field."""
    config = json.loads(tiny_config().to_json())
    group, _, field = name.rpartition(".")
    (config[group] if group else config)[field] = value
    return config


def message(config: dict[str, Any]) -> str:
    with pytest.raises(UserError) as raised:
        with_defaults(config, "FOLDER")
    return str(raised.value)


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_is_valid(name: str) -> None:
    module = importlib.import_module(f"configs.{name}")
    for variant in [(), *((name,) for name in getattr(module, "VARIANTS", ()))]:
        config = module.get_config(*variant)
        check_config(config)
        assert with_defaults(json.loads(config.to_json()), "FILE") == json.loads(config.to_json())


def test_every_field_has_a_rule() -> None:
    config = tiny_config()
    names = [name for name in config if name != "model"] + [f"model.{name}" for name in config.model]
    assert sorted(FIELDS) == sorted(set(names) - {"model.transformer"})
    assert list(TRANSFORMER_FIELDS) == [field.name for field in dataclasses.fields(TransformerConfig)]
    for rules, field, values in (
        (FIELDS, "model.resnet_depth", DEPTHS),
        (TRANSFORMER_FIELDS, "activation", ACTIVATIONS),
    ):
        assert rules[field].description == f"it must be one of {', '.join(map(str, values))}"


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_types_and_numbers_are_refused_with_field_value_and_range(name: str) -> None:
    wrong: list[Any] = [None, {"a": 1}, [[1]], -1, -1.5, math.nan, math.inf, -math.inf, 10**30, "\x1b[2J", "x" * 9999]
    wrong += [] if name in ZERO else [0]
    wrong += [] if name in TEXTS or name == "model.dtype" else ["", "many"]
    wrong += [] if name in SWITCHES else [True]
    for value in wrong:
        text = message(config_with(name, value))
        assert text.startswith(f"FOLDER: config.{name} is ")
        assert FIELDS[name].description in text
        assert len(text) < 400 and "\x1b" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 8.0),
        ("epochs", 1e6),
        ("learning_rate", 1e-300),
        ("image_size", [65536, 65536]),
        ("image_size", [64]),
        ("image_size", [64.0, 64]),
        ("image_size", [60, 64]),
        ("model.transfer_layers", 100_000),
        ("model.resnet_depth", 42),
        ("model.resnet_depth", 18.0),
        ("model.dropout", 1.0),
        ("model.dtype", "complex64"),
        ("model.channel_gates", "False"),
        ("model.rematerialise", 1),
        ("learning_rate_drops", [1.0, math.nan]),
        ("published", [["paper", "mean_iou"]]),
        ("published", [["paper", "mean_iou", 47.2]]),
        ("augment_flip", 1.5),
        ("augment_scale", [1.5, 0.5]),
        ("augment_scale", [0.0, 1.0]),
        ("augment_scale", [1.0]),
        ("augment_scale", 1.0),
        ("augment_hue", 0.6),
        ("sentences_per_epoch", 1.5),
        ("dataset", ""),
        ("data_dir", "a\0b"),
        ("ema_decay", 1.0),
        ("focal_alpha", 1.5),
        ("learning_rate_schedule", "linear"),
        ("optimizer", "sgd"),
        ("evaluated_weights", "best"),
        ("best_measure", "mean_iou"),
        ("best_measure", "paper/"),
        ("best_measure", "../mean_iou"),
        ("best_measure", "refcoco-val/mean_iou"),
        ("best_measure", "/paper/mean_iou"),
        ("best_measure", "refcoco-val/paper/"),
        ("training_datasets", ["a2d_sentences"]),
        ("training_datasets", ["a2d_sentences", 1.0]),
        ("training_datasets", [["a2d_sentences", 0.0]]),
        ("training_datasets", [["a2d_sentences", -1]]),
        ("training_datasets", [["a2d_sentences", math.nan]]),
        ("training_datasets", [["a2d_sentences", math.inf]]),
        ("training_datasets", [["a2d_sentences", "1"]]),
        ("training_datasets", [["a2d_sentences", 1], ["a2d_sentences", 2]]),
        ("training_datasets", [["", 1]]),
        ("evaluation_datasets", [["refcoco", ""]]),
        ("evaluation_datasets", [["refcoco", "val"], ["refcoco", "val"]]),
        ("validation_datasets", ["refcoco"]),
    ],
)
def test_wrong_values_are_refused(name: str, value: Any) -> None:
    assert message(config_with(name, value)).startswith(f"FOLDER: config.{name} is ")


@pytest.mark.parametrize("name", sorted(ZERO))
def test_zero_is_valid_where_it_means_something(name: str) -> None:
    with_defaults(config_with(name, 0), "FOLDER")


def test_every_protocol_can_choose_the_best_checkpoint() -> None:
    assert PROTOCOLS == tuple(metrics.PROTOCOLS)


def test_fields_must_fit_each_other() -> None:
    assert "a multiple of 4 and of config.model.attention_heads, 3" in message(config_with("model.attention_heads", 3))
    assert "text_encoder_learning_rate is 1.0; it must be 0.0, since it applies to a transformer only" in message(
        config_with("text_encoder_learning_rate", 1.0)
    )
    config = tiny_config()
    config.bce_weight = config.dice_weight = 0.0
    with pytest.raises(UserError, match="both 0"):
        check_config(config)
    config.focal_weight = 1.0
    check_config(config)
    config.update(validation_every_epochs=1.0, validation_every_steps=10)
    with pytest.raises(UserError, match="validation_every_epochs is 1.0 and config.validation_every_steps 10; set one"):
        check_config(config)
    assert "dataset is 'a2d_sentences', which is not one of config.training_datasets, refcoco, mevis." in message(
        config_with("training_datasets", [["refcoco", 1], ["mevis", 2.5]])
    )
    with_defaults(config_with("training_datasets", [["refcoco", 1], ["a2d_sentences", 2.5]]), "FOLDER")
    with_defaults(config_with("best_measure", "refcoco-val/paper/mean_iou"), "FOLDER")
    assert "sentences_per_epoch is 3; it must be 0 or a multiple of config.sentences_per_frame, 2" in message(
        config_with("sentences_per_epoch", 3) | {"sentences_per_frame": 2}
    )


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("layers", 20_000, "layers is 20000; it must be a whole number from 1 to 200"),
        ("padding_id", -1, "padding_id is -1"),
        ("padding_id", None, "padding_id is None"),
        ("padding_id", 30522, "padding_id 30522 must be below vocabulary, 30522"),
        ("heads", 7, "width 768 must be a multiple of heads, 7"),
        ("first_position", 512, "must be below positions"),
        ("norm_epsilon", math.nan, "norm_epsilon is nan"),
        ("activation", "__import__", "one of gelu"),
    ],
)
def test_sizes_of_a_transformer(field: str, value: Any, expected: str) -> None:
    check_transformer(dataclasses.asdict(BERT), "config.json")
    fields = {**dataclasses.asdict(BERT), field: value}
    with pytest.raises(UserError, match=expected):
        check_transformer(fields, "config.json")
    assert expected in message(config_with("model.transformer", fields))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (5, "expected a configuration, fields with their values, found 5"),
        ([], r"found \[\]"),
        (None, "found None"),
        (config_with("model", 5), "config.model is 5"),
        (config_with("model.transformer", [1]), r"config.model.transformer is \[1\]"),
        (config_with("model.transformer", {"layers": 2}), "missing: config.model.transformer.vocabulary, "),
        (config_with("sam_radius", 0.5), "does not know the field 'sam_radius'. A newer version may have written"),
        (config_with("model.moe", 2), "does not know the field 'model.moe'. A newer version"),
    ],
)
def test_what_a_checkpoint_holds_is_checked(config: Any, expected: str) -> None:
    with pytest.raises(UserError, match=f"FOLDER: .*{expected}"):
        with_defaults(config, "FOLDER")


def test_a_field_that_was_added_since_has_its_default() -> None:
    config = config_with("seed", 5)
    del config["epochs"], config["model"]["dropout"]
    config = with_defaults(config, "FOLDER")
    assert (config["seed"], config["epochs"], config["model"]["dropout"]) == (5, 15.0, 0.1)


@pytest.mark.parametrize("content", [b"", b'{"seed": 1', b"\xff\xfe", b"[" * 100_000, b"[]", b" " * 2_000_000])
def test_a_broken_config_json_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=str(path)):
        load_config(path)


def test_a_misspelt_field_of_a_file_is_told() -> None:
    config = tiny_config()
    config.learning_rte = 1.0
    with pytest.raises(UserError, match="no field 'learning_rte'. Did you mean 'learning_rate'?"):
        check_config(config)


def parse(*arguments: str) -> str:
    """The message about a command line; "" if it is valid."""
    values = flags.FlagValues()
    arguments = ("main", "--config=configs/shapes.py", *arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(arguments))  # ml_collections looks there for the fields
        config = config_flags.DEFINE_config_file("config", None, "", values, lock_config=True)
        try:
            values(arguments)
            check_config(config.value)
        except Exception as error:
            return explain_flags(error, "USAGE")
    return ""


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # by ml_collections
@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.batch_size=many", "config.batch_size is 'many'; it must be a whole number from 1 to"),
        ("--config.batch_size=2.5", "config.batch_size is '2.5'; it must be a whole number from 1 to"),
        ("--config.batch_size=-2", "config.batch_size is -2; it must be a whole number from 1 to"),
        ("--config.epochs=-1.0", "config.epochs is -1.0; it must be a number above 0"),
        ("--config.epochs=", "config.epochs is ''; it must be a number above 0"),
        ("--config.epochs=1e999", "config.epochs is inf; it must be a number above 0"),
        ("--config.image_size=64", "config.image_size is (64,); it must be (height, width)"),
        ("--config.model.channel_gates=maybe", "config.model.channel_gates is 'maybe'; it must be True or False"),
        ("--config.model=5", "config.model is '5'; it must be set field by field"),
        ("--config.modle.dropout=0", "The configuration has no field 'modle'. Did you mean 'model'?"),
        ("--config.model.dropuot=0", "The configuration has no field 'dropuot'. Did you mean 'dropout'?"),
        ("--config.nonsense=1", "The configuration has no field 'nonsense'. configs/base.py"),
        ("--config.image_size=96,64", ""),
        ("--config.learning_rate_drops=1,2.5", ""),
        ("--config.epochs=3", ""),
        ("--config.augment_scale=1,1.5", ""),
    ],
)
def test_command_lines(argument: str, expected: str) -> None:
    text = parse(argument)
    assert text.startswith(expected) and bool(text) == bool(expected)


def test_help_shows_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        benchmark_command.main(["benchmark", "--help"])
    assert not exit_.value.code
    assert "python -m lbdt_jax.benchmark [--config=" in capsys.readouterr().out


def test_the_configuration_is_a_config_dict_or_json() -> None:
    check_config(ConfigDict(with_defaults(config_with("seed", 1), "FOLDER")))
