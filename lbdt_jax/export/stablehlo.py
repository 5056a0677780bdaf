"""StableHLO programs, written and read by `jax.export`."""

from __future__ import annotations

import datetime
import hashlib
import json
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from input_pipeline.errors import UserError
from input_pipeline.files import read_limited
from lbdt_jax.checkpoint import Checkpoint
from lbdt_jax.export.programs import flat_weights, make_programs

PLATFORMS = ("cpu", "cuda", "tpu")

#: Program -> its file. The names are older than the method `segment`, and stay for scripts that read them.
FILES = {"encode": "encode.jax", "segment": "answer.jax"}

#: Limits for a program, which has a few MB without weights, and for model.json, which has a few kB.
MAX_PROGRAM_BYTES, MAX_JSON_BYTES = 256 * 2**20, 2**20

#: How much newer than the exporting jaxlib one may be: https://docs.jax.dev/en/latest/export/export.html
SUPPORTED = datetime.timedelta(days=182)


def export_programs(checkpoint: Checkpoint) -> dict[str, export.Exported]:
    """Exports `encode` and `segment`, as `make_programs` describes them, for all platforms."""
    return {
        name: export.export(jax.jit(program.function), platforms=PLATFORMS)(program.weights, *program.inputs)
        for name, program in make_programs(checkpoint).items()
    }


def write_programs(checkpoint: Checkpoint, folder: Path) -> dict[str, Any]:
    """Writes the programs and their weights to a folder, and returns what model.json says about them."""
    programs = export_programs(checkpoint)
    for name, program in programs.items():
        (folder / FILES[name]).write_bytes(program.serialize())
    np.savez(folder / "weights.npz", **jax.device_get(flat_weights(checkpoint)))
    described = {name: describe(program) for name, program in programs.items()}
    return {
        "calling_convention_version": programs["encode"].calling_convention_version,
        "platforms": PLATFORMS,
        "programs": {name: {"file": FILES[name], **program} for name, program in described.items()},
        # The same under its former name, for scripts that are older than "programs".
        "doors": {Path(FILES[name]).stem: program for name, program in described.items()},
    }


def describe(program: export.Exported) -> dict[str, Any]:
    """The inputs and outputs of a program, dtype and shape by name; only the weights are not listed."""
    (_, *inputs), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    return {
        "inputs": ["weights", *map(describe_arrays, inputs)],
        "output": describe_arrays(jax.tree.unflatten(program.out_tree, program.out_avals)),
    }


def describe_arrays(tree: Any) -> Any:
    """Dtype and shape, "uint8[B, 320, 320, 3]", of an array, or of each of a dictionary."""
    if isinstance(tree, Mapping):
        return {name: describe_arrays(value) for name, value in tree.items()}
    return f"{tree.dtype}[{', '.join(map(str, tree.shape))}]"


def load_program(path: str | Path) -> export.Exported:
    """Reads one of the exported programs; `load_program(path).call` is the function.

    JAX reads programs of jaxlib releases that are up to half a year older, or three weeks newer, than the one that
    reads. Of a program that is older by its date, but can still be read, a warning says so.

    Raises:
      UserError: the file was changed since it was exported, or this version of jax or this device can't run it.
      OSError: there is no such file.
    """
    path = Path(path)
    content = read_limited(path, MAX_PROGRAM_BYTES)
    description = Description(path.with_name("model.json"))
    again = description.command
    checksum = description.checksums.get(path.name)
    if checksum and hashlib.sha256(content).hexdigest() != checksum:
        raise UserError(f"{path} was changed since it was exported: it is damaged. {again}")
    if description.format != "stablehlo":
        raise UserError(f"{path} is not for JAX: onnxruntime runs it. {again}")
    try:
        program = export.deserialize(bytearray(content))
        program.mlir_module()  # what is too old is noticed only here
        version = program.calling_convention_version
        oldest = export.minimum_supported_calling_convention_version
        newest = export.maximum_supported_calling_convention_version
        if not oldest <= version <= newest:
            raise ValueError(f"its calling convention has version {version}, not {oldest} to {newest}")
    except Exception as error:  # flatbuffers and MLIR raise anything
        raise UserError(
            f"{path} can't be read by jax {jax.__version__}.{description.origin} A version of jax reads the programs "
            "of those that are up to half a year older, or three weeks newer; or the file is damaged. "
            f"{again}\n{type(error).__name__}: {str(error).partition(chr(10))[0]:.300}"
        ) from error
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in program.platforms:
        raise UserError(f"{path} runs on {', '.join(program.platforms)}, not on {platform}.")
    if description.expired and description.jax != jax.__version__:
        warnings.warn(
            f"{path} can still be read by jax {jax.__version__}.{description.origin} JAX promises to read the programs "
            f"of versions that are up to half a year older, no longer. {again}",
            stacklevel=2,
        )
    return program


class Description:
    """What model.json says about the origin of the programs beside it. Exports of older versions say less.

    Attributes:
      format: "stablehlo" or "onnx".
      jax: the version that exported, or "".
      checksums: file -> SHA-256 of its content.
      date: on which it was exported, or None.
      command: a sentence that says how to export again.

    Raises:
      UserError: the file is broken.
    """

    def __init__(self, path: Path) -> None:
        self.command = _command("DIR", "")
        content: dict[str, Any] = {}
        try:
            if path.exists():
                content = json.loads(read_limited(path, MAX_JSON_BYTES))
                _ = content["jax"]
            self.format, self.jax = str(content.get("format", "stablehlo")), str(content.get("jax", ""))
            self.checksums = dict(content.get("sha256", {}))  # new in version 0.2, like what follows
            date = content.get("exported")
            self.date = datetime.date.fromisoformat(date) if date is not None else None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is broken: {error!r:.200}. {self.command}") from error
        checkpoint = content.get("checkpoint")
        if isinstance(checkpoint, str) and checkpoint.isprintable() and len(checkpoint) < 1000:
            self.command = _command(checkpoint, " --format=onnx" if self.format == "onnx" else "")

    @property
    def origin(self) -> str:
        """A sentence on when and by which version it was exported, after a space; or nothing."""
        date = f"On {self.date} it" if self.date else "It"
        return f" {date} was exported by jax {self.jax}." if self.jax else ""

    @property
    def expired(self) -> bool:
        """Whether it is so old that JAX may no longer read it."""
        return self.date is not None and datetime.datetime.now(datetime.UTC).date() - self.date > SUPPORTED


def _command(checkpoint: str, flags: str) -> str:
    return f"Export again: python -m lbdt_jax.export --checkpoint={shlex.quote(checkpoint)}{flags} --output=DIR"
