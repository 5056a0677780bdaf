"""A folder to share: one model in the formats of the Hugging Face Hub. `lbdt_jax.convert.sharing` writes it.

    config.json         {"format": "lbdt_jax", "format_version", "step", "weights", "versions", "config"}
    model.safetensors   params/... and batch_stats/..., float32; word_vectors/vectors, one row for each word; and
                        unused/..., arrays of a released PyTorch file that only the way back to PyTorch needs
    vocabulary.json     the list of words; or, of a transformer, its tokenizer.json
    README.md           the model card, which may be edited
    SHA256SUMS          the checksums of all others

Nothing in it is executed. The files are compared with their checksums, and what they declare with the model of the
configuration, before memory is taken for the arrays.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from input_pipeline.errors import UserError, first_few, say
from input_pipeline.files import read_limited
from input_pipeline.text.encoders import MAX_TOKENIZER_BYTES, SentenceEncoder
from input_pipeline.text.word_vectors import MAX_SIZE, WordVectors
from lbdt_jax.checkpoint_checks import (
    CheckpointError,
    are_words,
    check_finite,
    expected_shapes,
    misfit_message,
    tokenizer_for,
)
from lbdt_jax.checksums import FILE_NAME, find_changed, read_checksums
from lbdt_jax.cli import read_json_or_none
from lbdt_jax.config import MAX_JSON_BYTES, with_defaults
from lbdt_jax.convert.files import SAFETENSORS_DTYPES, read_safetensors

FORMAT, FORMAT_VERSION = "lbdt_jax", 1
CONFIG, WEIGHTS, WORDS, TOKENIZER, CARD = (
    "config.json",
    "model.safetensors",
    "vocabulary.json",
    "tokenizer.json",
    "README.md",
)
FILES = (CONFIG, WEIGHTS, WORDS, TOKENIZER, CARD, FILE_NAME)
#: What config.json holds.
FIELDS = ("format", "format_version", "step", "weights", "versions", "config")
VECTORS, UNUSED = "word_vectors/vectors", "unused/"
#: Ends of the names of other models' weights.
FOREIGN_WEIGHTS = (".safetensors", ".ckpt", ".pth", ".pt", ".bin", ".onnx", ".h5", ".msgpack")


@dataclasses.dataclass(frozen=True, eq=False)
class SharedModel:
    """What a folder to share holds; as in `lbdt_jax.checkpoint.Checkpoint`, but with numpy arrays."""

    variables: dict[str, Any]
    config: ConfigDict
    sentence_encoder: SentenceEncoder
    step: int
    weights: str


def is_shared(folder: Path) -> bool:
    """Whether a folder is one to share, or what damage has left of one."""
    if not folder.is_dir() or (folder / "checkpoints").is_dir():
        return False
    if _read_json(folder / CONFIG).get("format") == FORMAT:
        return True
    try:
        listed = read_checksums(folder).keys()
    except (UserError, OSError):
        return False
    return WEIGHTS in listed and not listed.isdisjoint((WORDS, TOKENIZER))


def describe_foreign(path: Path) -> str:
    """One or two sentences about a path without a checkpoint: what it holds instead, and what is wanted."""
    wanted = "Train first, or pass a folder that holds one."
    if path.is_file():
        advice = "is inside" if path.name in FILES else "`python -m lbdt_jax.convert` makes of it, if it is LBDT's"
        return f"It is a file; pass the folder that {advice}."
    if not path.is_dir():
        return wanted
    settings, weights = _read_json(path / CONFIG), [p.name for p in path.iterdir() if p.suffix in FOREIGN_WEIGHTS]
    kind = settings.get("model_type") or settings.get("architectures") or settings.get("_class_name")
    if kind or weights:
        found = [*([f"{CONFIG} of a model of the kind {kind!r:.100}"] if kind else []), *sorted(weights)]
        return (
            f"It holds another model, not one of lbdt_jax: {first_few(found)}. Pass WORKDIR of a training, or a folder "
            "that `python -m lbdt_jax.convert` has written."
        )
    return wanted


def load_shared(folder: Path) -> SharedModel:
    """Loads the model in a folder to share.

    Raises:
      CheckpointError: the folder is incomplete, damaged, of a newer version, or does not fit its own configuration.
    """
    description = _read_description(folder)
    try:
        config = ConfigDict(with_defaults(description["config"], str(folder / CONFIG)))
        file_name = TOKENIZER if config.model.transformer else WORDS
        _verify(folder, file_name, WEIGHTS)
        if config.model.transformer:
            content = read_limited(folder / TOKENIZER, MAX_TOKENIZER_BYTES)
            tokenizer = tokenizer_for(config, content.decode("utf-8", "replace"))
            words = None
        else:
            words = _read_words(folder)
        arrays = read_safetensors(
            folder / WEIGHTS,
            functools.partial(_check_declared, folder, config, words),
            ("params/", "batch_stats/", VECTORS),
            SAFETENSORS_DTYPES,
        )
    except CheckpointError:
        raise
    except UserError as error:
        raise _broken(folder, str(error).removeprefix(f"{folder}: ")) from error
    check_finite(folder, arrays)
    if problem := find_changed(folder, [CARD]):
        say(f"{folder}: {problem} The model itself is as it was written.")
    encoder = tokenizer if words is None else WordVectors(tuple(words), arrays.pop(VECTORS), config.word_vectors)
    variables = unflatten_dict(arrays, sep="/")
    return SharedModel(variables, config, encoder, description["step"], description["weights"])


def load_shared_unused(folder: Path) -> dict[str, np.ndarray]:
    """As `lbdt_jax.checkpoint.load_unused`. Raises CheckpointError if the file is missing, changed or broken."""
    _verify(folder, WEIGHTS)
    try:
        arrays = read_safetensors(folder / WEIGHTS, prefixes=(UNUSED,), dtypes=SAFETENSORS_DTYPES)
    except UserError as error:
        raise _broken(folder, str(error)) from error
    return {name.removeprefix(UNUSED): array for name, array in arrays.items()}


def _check_declared(
    folder: Path, config: ConfigDict, words: list[str] | None, declared: Mapping[str, np.ndarray]
) -> None:
    """Raises CheckpointError if arrays have other names, shapes or dtypes than those of the model and the words."""
    arrays = {name: array for name, array in declared.items() if not name.startswith(UNUSED)}
    size = 0
    if words is not None:
        vectors = arrays.pop(VECTORS, None)
        found = None if vectors is None else vectors.shape
        if found is None or len(found) != 2 or found[0] != len(words) or not 1 <= found[1] <= MAX_SIZE:
            raise _broken(folder, f"{VECTORS}: expected vectors of {len(words)} words, found {found or 'nothing'}.")
        size = found[1]
    expected = expected_shapes(config, size)
    for name in sorted(expected.keys() | arrays.keys()):
        shape = arrays[name].shape if name in arrays else None
        if expected.get(name) != shape:
            raise CheckpointError(misfit_message(folder, name, shape, expected.get(name)))
    for name, array in declared.items():
        if array.dtype != np.float32 and not name.startswith(UNUSED):
            raise _broken(folder, f"{name}: expected float32, found {array.dtype}.")


def _read_description(folder: Path) -> dict[str, Any]:
    """The content of config.json. Raises CheckpointError if it is changed, of a newer version, or has other fields."""
    _verify(folder, CONFIG)
    description = _read_json(folder / CONFIG)
    if description.get("format") != FORMAT:
        raise CheckpointError(f"{folder}: {CONFIG} is not one of lbdt_jax. {describe_foreign(folder)}")
    version = description.get("format_version")
    unknown = sorted(description.keys() - {*FIELDS})
    if type(version) is int and version > FORMAT_VERSION or unknown:
        reason = f"has the unknown fields {first_few(unknown)}" if unknown else f"has format_version {version}"
        raise CheckpointError(f"{folder}: {CONFIG} {reason}. A newer version wrote it: update lbdt_jax.")
    step, weights, versions = (description.get(name) for name in ("step", "weights", "versions"))
    valid = {
        "format_version": type(version) is int and version == FORMAT_VERSION,
        "step": type(step) is int and 0 <= step < 2**31,
        "weights": isinstance(weights, str) and weights in ("trained", "ema"),
        "versions": isinstance(versions, dict) and all(isinstance(value, str) for value in versions.values()),
        "config": isinstance(description.get("config"), dict),
    }
    for name, is_valid in valid.items():
        if not is_valid:
            raise _broken(folder, f"{CONFIG}: {name} is {description.get(name)!r:.100}.")
    return description


def _read_words(folder: Path) -> list[str]:
    """The content of vocabulary.json. Raises UserError if it is no list of distinct words."""
    try:
        words = json.loads(read_limited(folder / WORDS, MAX_TOKENIZER_BYTES))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{WORDS} is broken: {error}") from error
    if not are_words(words):
        raise UserError(f"{WORDS} is no list of distinct words.")
    return words


def _read_json(path: Path) -> dict[str, Any]:
    """A dictionary in json; an empty one if there is none, whatever the reason."""
    content = read_json_or_none(path, MAX_JSON_BYTES)
    return content if isinstance(content, dict) else {}


def _verify(folder: Path, *names: str) -> None:
    """Raises CheckpointError if one of these files is missing, was changed or is not listed."""
    if problem := find_changed(folder, names):
        raise _broken(folder, problem)


def _broken(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"The shared model {folder} is broken. Copy or download it again, or write it anew with `python -m "
        f"lbdt_jax.convert --format=safetensors`.\n{reason}"
    )
