"""What a checkpoint declares and holds, compared with what is expected. Its files come from anywhere."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, TypeGuard

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from input_pipeline.text.encoders import TransformerTokenizer
from lbdt_jax.step import initial_variables, make_model

#: Arrays of more bytes than this may take at most this many times the space of the files that hold them. Trained
#: weights compress to about 0.9 of their size.
MAX_UNCHECKED_BYTES, MAX_COMPRESSION = 2**28, 20


class CheckpointError(UserError):
    """A checkpoint is missing, broken or incompatible. The message names the folder and says what to do."""


def shapes(tree: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every array, by its name such as "params/head/project/bias"."""
    return {name: leaf.shape for name, leaf in by_name(tree).items()}


def by_name(tree: dict[str, Any]) -> dict[str, Any]:
    """The leaves of a tree by their names, such as "params/head/project/bias"."""
    # By name, since orbax describes optax's named tuples as dictionaries.
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def expected_shapes(config: ConfigDict, word_vector_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of every variable of a configuration's model, by name. Raises UserError for invalid sizes."""
    return _expected_shapes(config.to_json(), word_vector_size)


@functools.lru_cache(maxsize=8)  # tracing a model takes seconds
def _expected_shapes(config_json: str, word_vector_size: int) -> dict[str, tuple[int, ...]]:
    config = ConfigDict(json.loads(config_json))
    config.model.dtype = "float32"  # float64 would need JAX with 64 bits, and the shapes are the same
    return shapes(jax.eval_shape(lambda: initial_variables(make_model(config), config, word_vector_size)))


def tokenizer_for(config: ConfigDict, text: str) -> TransformerTokenizer:
    """The tokenizer of a checkpoint's transformer. Raises UserError if it is broken or does not fit `config`."""
    transformer = config.model.transformer
    if not transformer:
        raise UserError("It has a tokenizer, and no transformer that reads its tokens.")
    tokenizer = TransformerTokenizer(text, transformer.padding_id)
    tokenizer.check_fits(transformer.vocabulary, config.max_words)
    longest = transformer.positions - transformer.first_position
    if config.max_words > longest:
        raise UserError(f"config.max_words is {config.max_words}; its transformer reads {longest} tokens at most.")
    return tokenizer


def are_words(words: Any) -> TypeGuard[list[str]]:
    """Whether something out of json is a list of distinct words."""
    return isinstance(words, list) and all(isinstance(word, str) for word in words) and len({*words}) == len(words)


def misfit_message(folder: Path, name: str, found: tuple[int, ...] | None, expected: tuple[int, ...] | None) -> str:
    """The message about an array that has another shape than the configuration asks for; None if it is not there."""
    return (
        f"{folder} does not fit its own configuration, or is from another version of lbdt_jax: {name} is "
        f"{'missing' if found is None else found}, and should be {'absent' if expected is None else expected}."
    )


def check_declared(folder: Path, arrays: dict[str, Any], dtypes: tuple[str, ...] = ("float32", "float64")) -> None:
    """Checks what is declared about arrays, before memory is taken for them.

    Args:
      folder: of the checkpoint.
      arrays: subfolder -> what orbax returns about its arrays.
      dtypes: the allowed ones; float64 is what training writes where JAX computes with 64 bits.

    Raises:
      CheckpointError: an array has another dtype, or all of them are too large for their files.
    """
    declared = by_name(arrays)
    for name, leaf in declared.items():
        if str(getattr(leaf, "dtype", None)) not in dtypes:
            found = getattr(leaf, "dtype", type(leaf).__name__)
            *others, last = dtypes
            allowed = f"{', '.join(others)} or {last}" if others else last
            raise CheckpointError(broken_message(folder, f"{name}: expected {allowed}, found {found}"))
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in declared.values())
    files = sum(path.stat().st_size for name in arrays for path in (folder / name).rglob("*") if path.is_file())
    if needed > max(MAX_UNCHECKED_BYTES, MAX_COMPRESSION * files):
        raise CheckpointError(
            broken_message(
                folder,
                f"{', '.join(arrays)}: {files / 1e6:.1f} MB of files would take {needed / 1e9:.1f} GB of memory.",
            )
        )


def check_finite(folder: Path, arrays: dict[str, Any]) -> None:
    """Raises CheckpointError if a number is NaN or infinite."""
    for name, array in by_name(arrays).items():
        if not np.isfinite(np.asarray(array)).all():
            raise CheckpointError(
                f"{folder}: {name} has numbers that are NaN or infinite, with which nothing can be segmented. Did the "
                "training diverge? Use another checkpoint."
            )


def broken_message(folder: Path, reason: str) -> str:
    """The message about a checkpoint that can't be used, for a reason in one or more sentences."""
    return (
        f"The checkpoint {folder} is broken or of another model. Use an earlier one, or delete that folder to resume "
        f"from the one before.\n{reason}"
    )
