"""Reading and writing PyTorch's files. Nothing that a file says is ever executed."""

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

import numpy as np

from input_pipeline.errors import UserError
from lbdt_jax.cli import atomic_write


def import_torch() -> ModuleType:
    """PyTorch, which only its own files need. Raises UserError if it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"PyTorch's own files (.ckpt, .pth) need PyTorch: pip install -r requirements-torch.txt ({error})"
        ) from error
    return torch


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The state dict in a file of torch.save, old (no zip) or new.

    Accepted around it: {"state_dict": ...} or {"model": ...}, and "module." before all names (DataParallel).
    The file is read into memory, not mapped: so the caller can give up an array once it is converted.

    Returns:
      name -> array, float32 or int64, in the file's order.

    Raises:
      UserError: the file is missing or broken, wants to call something, or holds anything but such arrays; or PyTorch
        is not installed.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    torch = import_torch()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a pickle is newer than torch writes; what follows is the error
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file makes torch raise anything, from EOFError to KeyError
        named = re.search(r"(?:GLOBAL|function) ([\w.]+)", str(error))
        wanted = [named[1]] if named else called(path)
        if isinstance(error, pickle.UnpicklingError) and wanted:
            raise UserError(
                f"{path} is refused: it wants to call {wanted[0]}, and a state dict has no need of that. "
                "Nothing of it was executed."
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is broken, or no state dict that torch.save wrote: {reason}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded:
        raise UserError(f"{path} holds no state dict, but {'nothing' if loaded == {} else type(loaded).__name__}.")
    others = [
        f"  {name}: {getattr(value, 'dtype', type(value).__name__)}"
        for name, value in loaded.items()
        if not (
            isinstance(name, str)
            and isinstance(value, torch.Tensor)
            and value.dtype in (torch.float32, torch.int64)
            and value.layout == torch.strided
        )
    ]
    if others:
        raise UserError(
            "\n".join(
                [f"{path}: only float32 weights (and int64 counters) are converted, bit for bit. Others:", *others]
            )
        )
    state = {name: value.detach().numpy() for name, value in loaded.items()}
    return without_prefix(state, "module.")


def called(path: Path) -> list[str]:
    """What the pickles of a file would call, beside PyTorch's own; read without unpickling."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".pkl"))
    else:
        content = path.read_bytes()
    strings, names = [""], []
    stream = io.BytesIO(content)
    # A file may hold several pickles; at the first thing that is none, the search ends.
    with contextlib.suppress(ValueError):
        while stream.tell() < len(content):
            for instruction, argument, _ in pickletools.genops(stream):
                if instruction.name == "GLOBAL":
                    names.append(argument.replace(" ", "."))
                elif instruction.name == "STACK_GLOBAL":
                    names.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    return [name for name in names if not name.startswith(("torch.", "collections."))]


def write_torch(state: dict[str, np.ndarray], path: Path) -> None:
    """Writes a state dict with torch.save, whole or not at all.

    Args:
      state: name -> array. It is emptied on the way: each array is given up as its copy in torch's layout is made.
    """
    torch = import_torch()
    tensors = {}
    for name in list(state):
        tensors[name] = torch.from_numpy(np.require(state.pop(name), requirements=("C", "W")))
    with atomic_write(path) as unfinished:
        torch.save(tensors, unfinished)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file, float32 or int64. Raises UserError as `read_torch` does."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="numpy") as file:
            dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}
            others = [f"  {name}: {dtype}" for name, dtype in dtypes.items() if dtype not in ("F32", "I64")]
            if others:
                raise UserError("\n".join([f"{path}: only float32 weights are converted. Others:", *others]))
            return {name: file.get_tensor(name) for name in dtypes}
    except SafetensorError as error:
        raise UserError(f"{path} is broken, or no .safetensors file: {error}") from error


def without_prefix(state: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The same arrays without a prefix that every name has."""
    if all(name.startswith(prefix) for name in state):
        return {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)
