"""Converts a state dict of the published PyTorch code to our checkpoint, and back; and takes a checkpoint's weights.

    python -m lbdt_jax.convert --from=released.ckpt --to=DIR      python -m lbdt_jax.convert --from=DIR --to=new.ckpt
    python -m lbdt_jax.convert --from=WORKDIR --to=DIR

A folder is ours, a file, which for --to ends with .ckpt, .pth or .pt, is PyTorch's. From folder to folder, the newest
checkpoint is written without the optimizer's state, a third of its size. Nothing that exists is overwritten. All ways
are bit for bit: what the published code never uses is kept in the checkpoint and comes back.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import flags, logging

from input_pipeline.errors import UserError, exit_on_error, fail
from lbdt_jax.cli import atomic_write

USAGE = "\n".join(line.strip() for part in __doc__.splitlines()[2:4] for line in part.split("      ") if line.strip())
ENDINGS = (".ckpt", ".pth", ".pt")  # of PyTorch's files
FROM = flags.DEFINE_string("from", None, "A .ckpt file of the published code, or a folder with our checkpoint.")
TO = flags.DEFINE_string("to", None, f"The new folder, or the new file, whose name ends with {', '.join(ENDINGS)}.")


def to_ours(source: Path, target: Path) -> None:
    """Writes TARGET/checkpoints/0 of a file of torch.save.

    It has the published configuration and no word vectors: evaluation looks words up in config.word_vectors.

    Raises:
      UserError: the file is no complete state dict of LBDT; see `read_torch` and `from_torch`.
    """
    import jax
    from flax.traverse_util import flatten_dict, unflatten_dict

    from configs import base
    from input_pipeline.text.word_vectors import WordVectors
    from lbdt_jax.checkpoint import save_weights
    from lbdt_jax.convert.files import read_torch
    from lbdt_jax.convert.names import describe, from_torch, unused

    state = read_torch(source)
    flat, kept = flatten_dict(from_torch(state)), unused(state)
    report(state, kept)
    del state
    # One by one, each given up once it is copied: memory never holds all arrays twice.
    for path in flat:
        flat[path] = jax.device_put(np.ascontiguousarray(flat[path]))
    variables = unflatten_dict(flat)
    config = base.get_config()
    config.model.resnet_depth, config.model.transfer_layers = describe(variables)
    size = flat["params", "text_encoder", "input_kernel"].shape[0]
    word_vectors = WordVectors((), np.zeros((0, size), np.float32))
    with atomic_write(target) as unfinished:
        save_weights(unfinished, variables, config, word_vectors, kept)
    print(
        f"LBDT-{config.model.transfer_layers} with ResNet-{config.model.resnet_depth}, "
        f"{sum(array.size for array in flat.values()) / 1e6:.2f} million numbers: {target}"
    )


def to_weights(source: Path, target: Path) -> None:
    """Writes a checkpoint of ours without the optimizer's state, under the same step.

    Raises:
      CheckpointError: there is no sound checkpoint in the folder.
    """
    from lbdt_jax.checkpoint import load_checkpoint, load_unused, save_weights

    checkpoint = load_checkpoint(source)
    unused = load_unused(source)
    with atomic_write(target) as unfinished:
        save_weights(
            unfinished, checkpoint.variables, checkpoint.config, checkpoint.sentence_encoder, unused, checkpoint.step
        )
    print(f"The weights of {checkpoint.path}, after {checkpoint.step} steps: {target}")


def to_published(source: Path, target: Path) -> None:
    """Writes the state dict that the published code loads with strict=True.

    What it never uses is what the checkpoint was converted with; of one that we trained, `complete` fills it in.

    Raises:
      CheckpointError: there is no sound checkpoint in the folder.
      UserError: the network is not one that the published code has.
    """
    from lbdt_jax.checkpoint import load_checkpoint, load_unused
    from lbdt_jax.convert.files import import_torch, write_torch
    from lbdt_jax.convert.names import complete, to_torch

    import_torch()  # before anything that takes long
    # The checkpoint itself is not held, so that its arrays can go one by one.
    state = complete(to_torch(load_checkpoint(source).variables), load_unused(source))
    names = len(state)
    write_torch(state, target)
    print(f"{names} arrays, as the published code names them: {target}")


def return_freed_memory() -> None:
    """Has Linux's malloc give arrays back to the system as they are freed, instead of keeping them for itself."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc
            libc.mallopt(-3, 128 << 10)  # M_MMAP_THRESHOLD, in bytes; set by hand it doesn't grow
            libc.mallopt(-8, 1)  # M_ARENA_MAX: else every thread of orbax keeps memory of its own


def report(state: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]) -> None:
    """Says what of a state dict plays no part."""
    counters = sum(array.ndim == 0 for array in kept.values())
    numbers = sum(array.size for array in kept.values()) - counters
    print(
        f"{len(state)} arrays. The published code never uses {len(kept) - counters} of them, {numbers:,} numbers of "
        f"decoder.spa_tower, decoder.tem_tower and decoder.mask_head, and {counters} counters of batches: kept for the "
        "way back, no part of the network."
    )


def main(arguments: list[str]) -> None:
    """Parses the command line and converts."""
    try:
        flags.FLAGS(arguments)
        if not FROM.value or not TO.value:
            raise flags.Error("Both --from and --to are needed.")
    except flags.Error as error:
        fail(f"{error}\n{USAGE}")
    source, target = Path(FROM.value), Path(TO.value)
    logging.set_verbosity(logging.ERROR)
    return_freed_memory()

    import jax

    # Conversion needs no accelerator, and should not occupy one.
    jax.config.update("jax_platforms", "cpu")
    with exit_on_error("\nStopped; nothing was converted.", lambda error: f"{target} can't be written: {error}"):
        if not source.exists():
            raise UserError(f"--from: there is no {source}.")
        published = source.is_dir() and target.suffix in ENDINGS
        if os.path.lexists(target) and (published or not target.is_dir() or any(target.iterdir())):
            raise UserError(f"--to: {target} exists already. Nothing is overwritten; choose another name.")
        if source.is_file():
            to_ours(source, target)
        else:
            (to_published if published else to_weights)(source, target)


if __name__ == "__main__":
    main(sys.argv)
