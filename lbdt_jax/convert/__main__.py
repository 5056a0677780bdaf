"""Converts a state dict of the published PyTorch code to a checkpoint and back, or extracts a checkpoint's weights.

    python -m lbdt_jax.convert --from=released.ckpt --to=DIR      python -m lbdt_jax.convert --from=DIR --to=new.ckpt
    python -m lbdt_jax.convert --from=WORKDIR --to=DIR
    python -m lbdt_jax.convert --from=WORKDIR --to=DIR --format=safetensors

A folder holds a checkpoint of this code; a file, for --to one that ends with .ckpt, .pth or .pt, is PyTorch's. From
folder to folder, the newest checkpoint is written without the optimizer's state, a third of its size; from WORKDIR/best
the best one. --format=safetensors writes a folder to share, with a model card; all commands read such a folder, and
--from may also be the name of a repository with one on the Hugging Face Hub. Where there is a moving average of the
weights, it is converted (see config.evaluated_weights). Nothing is overwritten. All conversions are bit for bit: arrays
that the published code never uses are kept in the checkpoint and written back.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags, logging

from input_pipeline.errors import UserError, exit_on_error, fail
from lbdt_jax.cli import atomic_write, exit_on_help, parse_flags

if TYPE_CHECKING:
    from lbdt_jax.checkpoint import Checkpoint

USAGE = "\n".join(line.strip() for part in __doc__.splitlines()[2:5] for line in part.split("      ") if line.strip())
SUFFIXES = (".ckpt", ".pth", ".pt")  # of PyTorch's files
FROM = flags.DEFINE_string(
    "from",
    None,
    "A .ckpt file of the published code, a folder with a checkpoint, or OWNER/NAME on the Hugging Face Hub.",
)
TO = flags.DEFINE_string("to", None, f"A new folder, or a new file whose name ends with {', '.join(SUFFIXES)}.")
FORMAT = flags.DEFINE_enum(
    "format", "checkpoint", ["checkpoint", "safetensors"], "Of a new folder: a checkpoint, or a folder to share."
)


def convert_from_torch(source: Path, target: Path, shared: bool = False) -> None:
    """Converts a file of torch.save to a checkpoint, TARGET/checkpoints/0, or to a folder to share.

    It has the published configuration and no word vectors: evaluation looks words up in config.word_vectors.

    Raises:
      UserError: the file is not a complete state dict of LBDT; see `read_torch` and `from_torch`.
    """
    import jax
    from flax.traverse_util import flatten_dict, unflatten_dict

    from configs import base
    from input_pipeline.text.word_vectors import WordVectors
    from lbdt_jax.checkpoint import Checkpoint
    from lbdt_jax.convert.files import read_torch
    from lbdt_jax.convert.names import architecture, from_torch, unused

    state = read_torch(source)
    try:
        flat, kept = flatten_dict(from_torch(state)), unused(state)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    print_unused(state, kept)
    del state
    # One by one, each freed once it is copied: memory never holds all arrays twice.
    for path in flat:
        flat[path] = jax.device_put(np.ascontiguousarray(flat[path]))
    variables = unflatten_dict(flat)
    config = base.get_config()
    config.model.resnet_depth, config.model.transfer_layers = architecture(variables)
    size = flat["params", "text_encoder", "input_kernel"].shape[0]
    word_vectors = WordVectors((), np.zeros((0, size), np.float32))
    _write(Checkpoint(variables, config, word_vectors, 0, source), kept, target, shared)
    print(
        f"LBDT-{config.model.transfer_layers} with ResNet-{config.model.resnet_depth}, "
        f"{sum(array.size for array in flat.values()) / 1e6:.2f} million weights: {target}"
    )


def extract_weights(source: Path, target: Path, shared: bool = False) -> None:
    """Writes the newest checkpoint of a folder to another one, under the same step, without the optimizer's state.

    Args:
      source: the folder.
      target: a checkpoint is written to TARGET/checkpoints/STEP.
      shared: write a folder to share instead.

    Raises:
      CheckpointError: there is no valid checkpoint in the folder.
    """
    from lbdt_jax.checkpoint import load_checkpoint, load_unused

    checkpoint = load_checkpoint(source)
    _write(checkpoint, load_unused(source), target, shared)
    weights = "The moving average of the weights" if checkpoint.weights == "ema" else "The weights"
    print(f"{weights} of {checkpoint.path}, after {checkpoint.step} steps: {target}")


def _write(checkpoint: Checkpoint, unused: dict[str, np.ndarray], target: Path, shared: bool) -> None:
    """Writes a checkpoint as a folder of this code or as one to share, completely or not at all."""
    if shared:
        from lbdt_jax.convert.sharing import write_shared

        write_shared(target, checkpoint, unused)
        return
    from lbdt_jax.checkpoint import save_weights

    with atomic_write(target) as temporary:
        save_weights(
            temporary,
            checkpoint.variables,
            checkpoint.config,
            checkpoint.sentence_encoder,
            unused,
            checkpoint.step,
            checkpoint.weights,
        )


def convert_to_torch(source: Path, target: Path) -> None:
    """Converts a checkpoint to a state dict that the published code loads with strict=True.

    Arrays that the published code never uses are those of the file that the checkpoint was converted from; if it was
    trained from scratch, `complete` fills them in.

    Raises:
      CheckpointError: there is no valid checkpoint in the folder.
      UserError: the published code does not have this model.
    """
    from lbdt_jax.checkpoint import load_checkpoint, load_unused
    from lbdt_jax.convert.files import import_torch, write_torch
    from lbdt_jax.convert.names import complete, to_torch

    import_torch()  # fails early if it is not installed

    def load_variables() -> Mapping[str, Mapping]:
        checkpoint = load_checkpoint(source)
        if not checkpoint.config.model.frame_difference:
            raise UserError(
                f"{checkpoint.path} was trained with config.model.frame_difference=False. The published code always "
                "takes the difference of the frames, and would compute something else with these weights."
            )
        return checkpoint.variables

    # No reference to the checkpoint is kept, so that its arrays can be freed one by one.
    state = complete(to_torch(load_variables()), load_unused(source))
    count = len(state)  # write_torch empties it
    write_torch(state, target)
    print(f"{count} arrays, as the published code names them: {target}")


def return_freed_memory() -> None:
    """Makes glibc return the memory of freed arrays to the system at once."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc
            libc.mallopt(-3, 128 << 10)  # M_MMAP_THRESHOLD, in bytes; once set, it doesn't grow
            libc.mallopt(-8, 1)  # M_ARENA_MAX: otherwise every thread of orbax keeps freed memory


def print_unused(state: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]) -> None:
    """Prints which arrays of a state dict are not part of the model."""
    counters = sum(array.ndim == 0 for array in kept.values())
    weights = sum(array.size for array in kept.values()) - counters
    print(
        f"{len(state)} arrays. The published code never uses {len(kept) - counters} of them, {weights:,} weights of "
        f"decoder.spa_tower, decoder.tem_tower and decoder.mask_head, and {counters} counters of batches: they are not "
        "part of the model, and are kept for converting back."
    )


def main(arguments: list[str]) -> None:
    """Parses the command line and converts."""
    try:
        exit_on_help(arguments, __doc__)
        parse_flags(arguments)
        if not FROM.value or not TO.value:
            raise flags.Error("Both --from and --to are needed.")
    except flags.Error as error:
        fail(f"{error}\n{USAGE}")
    target, shared = Path(TO.value), FORMAT.value == "safetensors"
    logging.set_verbosity(logging.FATAL)  # orbax also logs a traceback of every error that it raises
    return_freed_memory()

    import jax

    # Conversion needs no accelerator, and should not occupy one.
    jax.config.update("jax_platforms", "cpu")
    with exit_on_error("\nStopped; nothing was converted.", lambda error: f"{target} can't be written: {error}"):
        from lbdt_jax.checkpoint_folder import resolve_best
        from lbdt_jax.hub import locate_checkpoint

        source = resolve_best(locate_checkpoint(FROM.value))
        if not source.exists():
            raise UserError(f"--from: there is no {source}.")
        to_torch = target.suffix in SUFFIXES
        if shared and to_torch:
            raise UserError(f"--to: {target} is the name of a PyTorch file; --format=safetensors writes a folder.")
        if os.path.lexists(target) and (to_torch or not target.is_dir() or any(target.iterdir())):
            raise UserError(f"--to: {target} exists already. Nothing is overwritten; choose another name.")
        if to_torch and not source.is_dir():
            raise UserError(f"--to: {target} would be PyTorch's file, as {source} is. Convert it to a folder.")
        from lbdt_jax.checkpoint import hide_abandoned_writes

        hide_abandoned_writes()
        if not source.is_dir():
            convert_from_torch(source, target, shared)
        elif to_torch:
            convert_to_torch(source, target)
        else:
            extract_weights(source, target, shared)
        if shared:
            print(f"Read {target / 'README.md'}, and name a license in it. To upload it: hf upload OWNER/NAME {target}")


if __name__ == "__main__":
    main(sys.argv)
