"""Reads and writes PyTorch and safetensors files, without ever executing what a file contains."""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from input_pipeline.errors import UserError
from lbdt_jax.cli import atomic_write


def import_torch() -> ModuleType:
    """Imports PyTorch, which only its own files need. Raises UserError if it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"PyTorch's own files (.ckpt, .pth) need PyTorch: pip install -r requirements-torch.txt ({error})"
        ) from error
    return torch


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict from a file of torch.save, in the old format or the new zip format.

    The state dict may be wrapped in {"state_dict": ...} or {"model": ...}, and all its names may begin with "module."
    (DataParallel). The file is read into memory, not mapped, so the caller can free each array once it is converted.

    Returns:
      name -> array, float32 or int64, in the file's order.

    Raises:
      UserError: the file is missing or broken, would call a function, or contains anything but such arrays; or PyTorch
        is not installed.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    loaded = _load(path)
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"{path} holds no state dict, but {'nothing' if loaded == {} else type(loaded).__name__}.")
    torch = import_torch()
    unsupported = [
        f"  {name}: {getattr(value, 'dtype', type(value).__name__)}"
        for name, value in loaded.items()
        if not (
            isinstance(name, str)
            and isinstance(value, torch.Tensor)
            and value.dtype in (torch.float32, torch.int64)
            and value.layout == torch.strided
        )
    ]
    if unsupported:
        heading = f"{path}: only float32 weights and int64 counters can be converted. Found instead:"
        raise UserError("\n".join([heading, *unsupported]))
    state = {name: value.detach().numpy() for name, value in loaded.items()}
    return without_prefix(state, "module.")


def _load(path: Path) -> Any:
    """What torch.save has written to a file. Raises UserError if it is broken, or not data alone."""
    torch = import_torch()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a newer pickle protocol; if it can't be read, there is an error, too
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # for a broken file, torch raises anything from EOFError to KeyError
        match = re.search(r"(?:GLOBAL|function) ([\w.]+)", str(error))
        functions = [match[1]] if match else called_functions(path)
        if isinstance(error, pickle.UnpicklingError) and functions:
            raise UserError(
                f"{path} is refused: it would call {functions[0]}, which a state dict does not need. "
                "Nothing in it was executed."
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is broken, or not a state dict written by torch.save: {reason}") from error


def called_functions(path: Path) -> list[str]:
    """The functions that unpickling a file would call, except PyTorch's own; read without unpickling."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".pkl"))
    else:
        content = path.read_bytes()
    strings, names = [""], []
    stream = io.BytesIO(content)
    # A file may contain several pickles; the search ends at the first byte that belongs to none.
    with contextlib.suppress(ValueError):
        while stream.tell() < len(content):
            for instruction, argument, _ in pickletools.genops(stream):
                if instruction.name == "GLOBAL":
                    names.append(str(argument).replace(" ", "."))
                elif instruction.name == "STACK_GLOBAL":
                    names.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    return [name for name in names if not name.startswith(("torch.", "collections."))]


def write_torch(state: dict[str, np.ndarray], path: Path) -> None:
    """Writes a state dict with torch.save, atomically.

    Args:
      state: name -> array. It is emptied: each array is freed once it is copied into torch's layout.
      path: of the file.
    """
    torch = import_torch()
    tensors = {}
    for name in list(state):
        tensors[name] = torch.from_numpy(np.require(state.pop(name), requirements=("C", "W")))
    with atomic_write(path) as temporary:
        torch.save(tensors, temporary)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a .safetensors file, float32 or int64. Raises UserError as `read_torch` does."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="numpy") as file:
            dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}
            unsupported = [f"  {name}: {dtype}" for name, dtype in dtypes.items() if dtype not in ("F32", "I64")]
            if unsupported:
                heading = f"{path}: only float32 weights can be converted. Found instead:"
                raise UserError("\n".join([heading, *unsupported]))
            return {name: file.get_tensor(name) for name in dtypes}
    except SafetensorError as error:
        raise UserError(f"{path} is broken, or not a .safetensors file: {error}") from error


def without_prefix(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The same arrays; a prefix that all names have is removed."""
    if all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)
