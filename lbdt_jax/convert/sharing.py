"""Writes a folder to share, whose files `lbdt_jax.checkpoint_shared` describes."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from ml_collections import ConfigDict

from configs import base
from input_pipeline.text.encoders import TransformerTokenizer
from input_pipeline.text.word_vectors import WordVectors
from lbdt_jax.checkpoint import Checkpoint
from lbdt_jax.checkpoint_checks import by_name
from lbdt_jax.checkpoint_shared import (
    CARD,
    CONFIG,
    FORMAT,
    FORMAT_VERSION,
    TOKENIZER,
    UNUSED,
    VECTORS,
    WEIGHTS,
    WORDS,
)
from lbdt_jax.checksums import write_checksums
from lbdt_jax.cli import atomic_write, write_json
from lbdt_jax.convert.model_card import make_card

#: Fields that may be a path. One that names a folder of this machine isn't shared.
PATH_FIELDS = ("data_dir", "raw", "checkpoint", "initial_weights", "word_vectors", "text_encoder")
LIBRARIES = ("lbdt_jax", "jax", "flax", "numpy", "safetensors")


def write_shared(target: Path, checkpoint: Checkpoint, unused: dict[str, np.ndarray]) -> None:
    """Writes a folder to share, completely or not at all.

    Args:
      target: the folder, new or empty.
      checkpoint: the model. The scores of its training, if there are any, go into the model card.
      unused: arrays of a released PyTorch file that only the way back to PyTorch needs.

    Raises:
      OSError: the files can't be written.
    """
    config = without_local_paths(checkpoint.config)
    encoder = checkpoint.sentence_encoder
    arrays = {name: np.asarray(array, np.float32) for name, array in by_name(checkpoint.variables).items()}
    with atomic_write(target) as folder:
        folder.mkdir()
        if isinstance(encoder, TransformerTokenizer):
            (folder / TOKENIZER).write_text(encoder.text, "utf-8")
        elif isinstance(encoder, WordVectors):
            write_json(list(encoder.words), folder / WORDS)
            arrays[VECTORS] = encoder.vectors
        _write_safetensors({**arrays, **{UNUSED + name: array for name, array in unused.items()}}, folder / WEIGHTS)
        description = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "step": checkpoint.step,
            "weights": checkpoint.weights,
            "versions": _versions(),
            "config": json.loads(config.to_json()),
        }
        write_json(description, folder / CONFIG)
        shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors' files are for their owner only
        (folder / CARD).write_text(make_card(checkpoint, config, without_local_paths), "utf-8")
        write_checksums(folder)


def without_local_paths(config: ConfigDict) -> ConfigDict:
    """A copy of a configuration in which absolute paths are cut to their last part, and data_dir to its default."""
    config, defaults = config.copy_and_resolve_references(), base.get_config()
    for name in PATH_FIELDS:
        value = config[name]
        if PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute():
            keeps_name = name in ("initial_weights", "word_vectors", "text_encoder")
            config[name] = (keeps_name and PureWindowsPath(value).name) or defaults[name]
    return config


def _write_safetensors(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Writes a .safetensors file. Raises OSError if that fails, for example on a full disk."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file({name: np.require(a, requirements="C") for name, a in arrays.items()}, path, {"format": "flax"})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _versions() -> dict[str, str]:
    """The versions of what made the files, for people."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:  # lbdt_jax need not be installed
            continue
    return versions
