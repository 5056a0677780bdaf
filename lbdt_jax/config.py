"""Type and range of every configuration field: of configs/*.py and the command line, and of what is loaded.

The ranges are wide: they exclude what can't work, and sizes that only a broken or hostile file would ask for.
"""

from __future__ import annotations

import difflib
import json
import reprlib
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import base
from input_pipeline.errors import UserError
from input_pipeline.files import read_limited

INT32_MAX = 2**31 - 1
#: Characters of a path or a name.
MAX_TEXT = 4096
#: Limit for a config.json; ours have 2 kB.
MAX_JSON_BYTES = 2**20

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 100


class Rule(NamedTuple):
    """What a field may be.

    Attributes:
      description: in words, such as "it must be True or False".
      accepts: whether a value is allowed. Gets values of any type.
    """

    description: str
    accepts: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def integer(minimum: int, maximum: int = INT32_MAX) -> Rule:
    """A whole number in a range, both ends included."""
    return Rule(
        f"it must be a whole number from {minimum} to {maximum}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum,
    )


def number(minimum: float, maximum: float) -> Rule:
    """A number in a range, both ends included."""
    return Rule(
        f"it must be a number from {minimum:g} to {maximum:g}",
        lambda value: _is_number(value) and minimum <= value <= maximum,
    )


def choice(*values: int | str) -> Rule:
    """One of some values."""
    # `==` alone would take 18.0 and True.
    return Rule(
        f"it must be one of {', '.join(map(str, values))}",
        lambda value: any(type(value) is type(allowed) and value == allowed for allowed in values),
    )


def sequence(description: str, accepts: Callable[[tuple[Any, ...]], bool]) -> Rule:
    """A tuple, or a list from json, of at most 1000 elements."""
    return Rule(
        description, lambda value: isinstance(value, (tuple, list)) and len(value) <= 1000 and accepts(tuple(value))
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and not any(unicodedata.category(c) == "Cc" for c in value)


SWITCH = Rule("it must be True or False", lambda value: isinstance(value, bool))
TEXT = Rule(f"it must be text without control characters, of at most {MAX_TEXT} characters", _is_text)
NAME = Rule(
    f"it must be a name of 1 to {MAX_TEXT} characters, none of them a control character",
    lambda value: _is_text(value) and value != "",
)

SIDE = integer(32, 2048)
EPOCHS = number(0, 1e5)
LEARNING_RATE = number(1e-12, 10)
WEIGHT = number(0, 1e6)
SCALE = number(0.1, 10)
SHARE = number(1e-6, 1e6)
FRACTION = Rule("it must be a number from 0 to below 1", lambda value: _is_number(value) and 0 <= value < 1)
PROTOCOLS = ("paper", "standard", "per_expression", "all_expressions", "gres")
#: Values of config.evaluated_weights.
WEIGHTS = ("", "trained", "ema")


def _is_measure(value: Any) -> bool:
    if not _is_text(value):
        return False
    first, _, rest = value.partition("/")
    protocol, _, measure = (first, "/", rest) if first in PROTOCOLS else rest.partition("/")
    return not value or bool(first and measure) and protocol in PROTOCOLS


def _are_pairs(rows: tuple[Any, ...], second: Rule) -> bool:
    return all(
        isinstance(row, (tuple, list)) and len(row) == 2 and NAME.accepts(row[0]) and second.accepts(row[1])
        for row in rows
    )


def _is_published_score(row: Any) -> bool:
    if not isinstance(row, (tuple, list)) or len(row) != 3:
        return False
    protocol, measure, score = row
    return protocol in PROTOCOLS and _is_text(measure) and _is_number(score) and 0 <= score <= 1


#: The rule of evaluation_datasets and validation_datasets.
SPLITS = sequence(
    "it must be a tuple of (dataset, split), each once, such as (('refcoco', 'val'), ('refcoco', 'testA'))",
    lambda rows: _are_pairs(rows, NAME) and len({(name, split) for name, split in rows}) == len(rows),
)

#: Field -> its rule, in the order of configs/base.py, which explains the fields.
FIELDS: dict[str, Rule] = {
    "seed": integer(0),
    "dataset": NAME,
    "training_datasets": sequence(
        "it must be a tuple of (dataset, share), each dataset once and each share a number above 0, at most 1000000, "
        "such as (('refer_youtube_vos', 3.0), ('refcoco', 1.0))",
        lambda rows: _are_pairs(rows, SHARE) and len({name for name, _ in rows}) == len(rows),
    ),
    "data_dir": TEXT,
    "raw": TEXT,
    "frame_interval": integer(1, 1_000_000),
    "no_target_sentences": SWITCH,
    "frame_rate": number(0.001, 100_000),
    "image_size": sequence(
        "it must be (height, width), both multiples of 32 from 32 to 2048",
        lambda size: len(size) == 2 and all(SIDE.accepts(side) and side % 32 == 0 for side in size),
    ),
    "max_words": integer(1, 1024),
    "text_encoder": NAME,
    "tokenizer": TEXT,
    "word_vectors": TEXT,
    "model.encoder": choice("resnet", "convnext_tiny", "convnext_small", "convnext_base"),
    "model.resnet_depth": choice(18, 34, 50, 101),
    "model.stream_width": integer(1, 512),
    "model.transfer_layers": integer(0, 64),
    "model.transfer_width": integer(4, 8192),
    "model.attention_heads": integer(1, 1024),
    "model.dropout": FRACTION,
    "model.decoder_width": integer(1, 4096),
    "model.channel_gates": SWITCH,
    "model.frame_difference": SWITCH,
    "model.rematerialise": SWITCH,
    "model.dtype": choice("float32", "bfloat16", "float64"),
    "initial_weights": TEXT,
    "batch_size": integer(1, 1_000_000),
    "sentences_per_frame": integer(1, 1000),
    "epochs": Rule("it must be a number above 0, at most 100000", lambda value: EPOCHS.accepts(value) and value > 0),
    "learning_rate": LEARNING_RATE,
    "text_encoder_learning_rate": Rule(
        "use 0.0 for a frozen encoder, or a number from 1e-12 to 10",
        lambda value: LEARNING_RATE.accepts(value) or (_is_number(value) and value == 0),
    ),
    "encoder_learning_rate_factor": number(0, 1000),
    "warmup_steps": integer(0),
    "learning_rate_drops": sequence(
        "it must be a tuple of at most 1000 numbers of epochs, each from 0 to 100000",
        lambda drops: all(map(EPOCHS.accepts, drops)),
    ),
    "weight_decay": number(0, 10),
    "bce_weight": WEIGHT,
    "bce_positive_weight": WEIGHT,
    "dice_weight": WEIGHT,
    "cpu_devices": integer(1, 256),
    "global_batch_norm": SWITCH,
    "shuffle_buffer": integer(1),
    "decoded_cache": integer(0),
    "augment_flip": number(0, 1),
    "augment_scale": sequence(
        "it must be (smallest, largest) scale, both from 0.1 to 10",
        lambda scales: len(scales) == 2 and all(map(SCALE.accepts, scales)) and scales[0] <= scales[1],
    ),
    "augment_min_visible": number(0, 1),
    "augment_brightness": number(0, 1),
    "augment_contrast": number(0, 1),
    "augment_saturation": number(0, 1),
    "augment_hue": number(0, 0.5),
    "sentences_per_epoch": integer(0, 65536),
    "log_every_steps": integer(1),
    "picture_every_steps": integer(1),
    "checkpoint_every_steps": integer(1),
    "checkpoint_every_minutes": number(0, 1e6),
    "keep_checkpoints": integer(1),
    # validation during training, and options beyond the published recipe
    "validation_every_epochs": EPOCHS,
    "validation_every_steps": integer(0),
    "validation_split": TEXT,
    "validation_datasets": SPLITS,
    "best_measure": Rule(
        f'it must be "", or PROTOCOL/MEASURE as in paper/mean_iou, with a protocol of {", ".join(PROTOCOLS)}; with '
        "several datasets also DATASET-SPLIT/PROTOCOL/MEASURE",
        _is_measure,
    ),
    "ema_decay": FRACTION,
    "evaluated_weights": Rule(
        'it must be "trained", "ema", or "" for the average where there is one',
        lambda value: isinstance(value, str) and value in WEIGHTS,
    ),
    "optimizer": choice("adamw", "muon"),
    "clip_gradient_norm": WEIGHT,
    "learning_rate_schedule": choice("drops", "cosine"),
    "focal_weight": WEIGHT,
    "focal_alpha": number(0, 1),
    "focal_gamma": number(0, 100),
    "checkpoint": TEXT,
    "evaluation_split": NAME,
    "evaluation_datasets": SPLITS,
    "evaluation_frames": integer(1, 65536),
    "evaluation_sentences": integer(1, 65536),
    "published": sequence(
        f"it must be a tuple of (protocol, measure, score): protocol {' or '.join(PROTOCOLS[:2])}, score from 0 to 1",
        lambda rows: all(map(_is_published_score, rows)),
    ),
    "contact_sheet_samples": integer(0, 256),
    "evaluation_attention_sheets": integer(0, 256),
}

#: The fields of `TransformerConfig`. The configuration has all or none of them.
TRANSFORMER_FIELDS: dict[str, Rule] = {
    "vocabulary": integer(1, 2_000_000),
    "width": integer(1, 16384),
    "layers": integer(1, 200),
    "heads": integer(1, 1024),
    "feed_forward_width": integer(1, 131072),
    "positions": integer(1, 131072),
    "first_position": integer(0, 131071),
    "token_types": integer(1, 1000),
    "padding_id": integer(0, 1_999_999),
    "norm_epsilon": number(1e-30, 1),
    "activation": choice("gelu", "gelu_new", "gelu_pytorch_tanh", "relu"),
}

#: Fields that consist of fields.
GROUPS = ("model", "model.transformer")


def check_config(config: ConfigDict | Mapping[str, Any], source: str = "") -> None:
    """Checks the name, type and range of every field.

    Args:
      config: from a configuration file or a checkpoint.
      source: the file or folder it was loaded from; "" for the configuration of this command.

    Raises:
      UserError: names every field that is wrong, its value and its range; or fields that are unknown or missing.
    """
    values = dict(_flatten(config))
    rules = dict(FIELDS)
    if any(name.startswith("model.transformer.") for name in values):
        rules |= {f"model.transformer.{name}": rule for name, rule in TRANSFORMER_FIELDS.items()}
    _check_names(values, rules, source)
    problems = [
        f"config.{name} is {_repr.repr(values[name])}; {rule.description}."
        for name, rule in rules.items()
        if not rule.accepts(values[name])
    ]
    _raise(problems or list(_contradictions(values)), source)


def check_transformer(fields: Mapping[str, Any], source: str) -> None:
    """Checks the fields of a `TransformerConfig` as `check_config` does. Raises UserError."""
    problems = [
        f"{name} is {_repr.repr(fields[name])}; {rule.description}."
        for name, rule in TRANSFORMER_FIELDS.items()
        if not rule.accepts(fields[name])
    ]
    _raise(problems or list(_transformer_contradictions(fields)), source)


def describe_field(name: str) -> str | None:
    """What a field such as "model.dropout" must be, in words; None for an unknown field."""
    if name in GROUPS:
        return "it must be set field by field, see configs/base.py"
    return FIELDS[name].description if name in FIELDS else None


def encoder_name(model: Mapping[str, Any]) -> str:
    """What to call the image encoder of `config.model` in messages: "ResNet-50" or "ConvNeXt tiny"."""
    name = model.get("encoder", "resnet")  # results of benchmarks may be older than the field
    return f"ResNet-{model['resnet_depth']}" if name == "resnet" else name.replace("convnext_", "ConvNeXt ")


def with_defaults(config: Any, source: str) -> dict[str, Any]:
    """A configuration read from json, checked, with the defaults of fields that were added since it was written.

    Args:
      config: what the json holds, of any type.
      source: the file or folder, for messages.

    Raises:
      UserError: as `check_config`.
    """
    defaults = json.loads(base.get_config().to_json())
    if not isinstance(config, dict):
        raise UserError(f"{source}: expected a configuration, fields with their values, found {_repr.repr(config)}.")
    config = {**defaults, **config}
    if isinstance(config["model"], dict):
        config["model"] = {**defaults["model"], **config["model"]}
    check_config(config, source)
    return config


def load_config(path: Path) -> dict[str, Any]:
    """The configuration in a config.json, as `with_defaults`. Raises UserError if it can't be read."""
    try:
        config = json.loads(read_limited(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is broken: {error}. Delete it to go on with the configuration of this command, or choose another "
            "--workdir."
        ) from error
    return with_defaults(config, str(path))


def _flatten(config: ConfigDict | Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields as (name, value), those of groups as "model.dropout"."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in GROUPS and isinstance(value, (ConfigDict, Mapping)):
            yield from _flatten(value, f"{name}.")
        else:
            yield name, value


def _check_names(values: Mapping[str, Any], rules: Mapping[str, Rule], source: str) -> None:
    """Raises UserError if there are other fields than those with a rule."""
    _raise(
        [
            f"config.{name} is {_repr.repr(values[name])}; it must be a group of fields, see configs/base.py."
            for name in GROUPS
            if name in values
        ],
        source,
    )
    unknown = sorted(values.keys() - rules.keys())
    if unknown:  # a field without a rule may be anything
        unknown = sorted(set(unknown) - dict(_flatten(base.get_config())).keys())
    if unknown:
        names = ", ".join(map(_repr.repr, unknown[:10]))
        if source:
            raise UserError(
                f"{source}: this version of lbdt_jax does not know the field{'s' * (len(unknown) > 1)} {names}. "
                "A newer version may have written the file: update lbdt_jax."
            )
        similar = difflib.get_close_matches(unknown[0], rules, 1)
        hint = f" Did you mean '{similar[0]}'?" if similar else ""
        raise UserError(f"The configuration has no field {names}.{hint} configs/base.py lists all of them.")
    missing = [name for name in rules if name not in values]
    _raise([f"missing: config.{', config.'.join(missing)}."] if missing else [], source)


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with fields that are right one by one."""
    width, heads = values["model.transfer_width"], values["model.attention_heads"]
    if width % heads or width % 4:
        yield (
            f"config.model.transfer_width is {width}; it must be a multiple of 4 and of config.model.attention_heads, "
            f"{heads}."
        )
    if values["text_encoder"] == "glove_lstm" and values["text_encoder_learning_rate"]:
        yield (
            f"config.text_encoder_learning_rate is {values['text_encoder_learning_rate']}; it must be 0.0, since it "
            "applies to a transformer only, and config.text_encoder is 'glove_lstm'."
        )
    if values["bce_weight"] == values["dice_weight"] == values["focal_weight"] == 0:
        yield (
            "config.bce_weight and config.dice_weight are both 0, and so is config.focal_weight; one must be above 0, "
            "or nothing is learned."
        )
    if values["validation_every_epochs"] and values["validation_every_steps"]:
        yield (
            f"config.validation_every_epochs is {values['validation_every_epochs']} and config.validation_every_steps "
            f"{values['validation_every_steps']}; set one of them to 0."
        )
    if values["sentences_per_epoch"] % values["sentences_per_frame"]:
        yield (
            f"config.sentences_per_epoch is {values['sentences_per_epoch']}; it must be 0 or a multiple of "
            f"config.sentences_per_frame, {values['sentences_per_frame']}."
        )
    trained = [name for name, _ in values["training_datasets"]]
    if trained and values["dataset"] not in trained:
        yield (
            f"config.dataset is {values['dataset']!r}, which is not one of config.training_datasets, "
            f"{', '.join(trained)}. It must be one of them: an epoch is a pass through it, and the fields raw and "
            "frame_interval are its own."
        )
    if "model.transformer.width" in values:
        fields = {name: values[f"model.transformer.{name}"] for name in TRANSFORMER_FIELDS}
        yield from (f"config.model.transformer: {problem}" for problem in _transformer_contradictions(fields))


def _transformer_contradictions(fields: Mapping[str, Any]) -> Iterator[str]:
    if fields["width"] % fields["heads"]:
        yield f"width {fields['width']} must be a multiple of heads, {fields['heads']}."
    for name, limit in (("first_position", "positions"), ("padding_id", "vocabulary")):
        if fields[name] >= fields[limit]:
            yield f"{name} {fields[name]} must be below {limit}, {fields[limit]}."


def _raise(problems: list[str], source: str) -> None:
    """Raises a UserError with the first ten problems, if there are any."""
    if problems:
        shown = problems[:10] + ([f"... and {len(problems) - 10} more."] if len(problems) > 10 else [])
        raise UserError("\n".join(f"{source}: {problem}" if source else problem for problem in shown))
