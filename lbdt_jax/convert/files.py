"""Reads and writes PyTorch and safetensors files, without ever executing what a file contains."""

from __future__ import annotations

import contextlib
import io
import math
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from input_pipeline.errors import UserError, first_few
from input_pipeline.files import check_regular_file, open_regular_file
from lbdt_jax.cli import atomic_write

#: Limit for a file of weights; LBDT-4 with the optimizer's state and averaged weights has 2 GB. Unpacked, it may have
#: twice the size of the file, and SMALL_BYTES in any case: torch.save doesn't compress.
MAX_TORCH_BYTES, SMALL_BYTES = 16 * 2**30, 64 * 2**20
#: Limit for the header of a .safetensors file, 100 bytes for each array.
MAX_HEADER_BYTES = 16 * 2**20
#: Names of dtypes in a .safetensors file.
SAFETENSORS_DTYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64}
#: What trainers name the state dict in what they save, the first one first; those of the second line hold averages.
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema")
#: What wrappers of modules put before all names: DataParallel, torch.compile, Lightning and others.
NAME_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "ema_model.")
#: Harmless objects that trainers save beside the weights. They are not instantiated: each becomes an `_Ignored`.
IGNORED = (
    "argparse.Namespace",
    "collections.defaultdict",
    *(
        f"{package}.multiarray.{name}"
        for package in ("numpy.core", "numpy._core")
        for name in ("scalar", "_reconstruct")
    ),
    *("numpy.dtype", "numpy.ndarray", "_codecs.encode"),
    *("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath"),
    *("datetime.datetime", "datetime.timedelta", "types.SimpleNamespace", "ml_collections.config_dict.ConfigDict"),
    *("yacs.config.CfgNode", "easydict.EasyDict", "addict.addict.Dict", "omegaconf.dictconfig.DictConfig"),
)
ZIP = b"PK\x03\x04"
#: First bytes of files that are no state dict -> what they are.
KINDS = {
    b"version https://git-lfs": "a git-lfs pointer, not the file itself; `git lfs pull` fetches it",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"BZh": "compressed with bzip2; unpack it first",
    b"\xfd7zXZ": "compressed with xz; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"\x89HDF": "an HDF5 file; only PyTorch's own files can be converted",
    b"\x93NUMPY": "a NumPy array; only PyTorch's own files can be converted",
    b"%PDF": "a PDF document",
}
RESAVE = (
    "Where you trust it, in the code that wrote it: "
    'torch.save(model.state_dict(), "weights.ckpt"), and convert that file.'
)


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

    The state dict may be wrapped in dictionaries, such as {"state_dict": ...}, and all its names may begin with
    NAME_PREFIXES. The file is read into memory, not mapped, so the caller can free each array once it is converted.

    Returns:
      name -> array, float32 or int64, in the file's order.

    Raises:
      UserError: the file is missing, broken or something else, would call a function, or contains anything but such
        arrays; or PyTorch is not installed.
    """
    if not path.exists():
        raise UserError(f"There is no file {path}.")
    check_regular_file(path, MAX_TORCH_BYTES)
    torch = import_torch()
    _check_kind(path)
    loaded = _unwrap(_load(path), path)
    unsupported = []
    for name, value in loaded.items():
        supported = (
            isinstance(name, str)
            and isinstance(value, torch.Tensor)
            and value.dtype in (torch.float32, torch.int64)
            and value.layout == torch.strided
            and value.device.type == "cpu"
            and not value.is_nested
        )
        if not supported:
            unsupported.append(f"  {name!s:.200}: {_describe(value)}")
    if unsupported:
        heading = f"{path}: only float32 weights and int64 counters can be converted. Found instead:"
        raise UserError("\n".join([heading, *first_ten(unsupported)]))
    # Views may repeat a few bytes of the file as often as they like, and a file may give a parameter any attribute.
    needed = sum(math.prod(value.shape) * value.element_size() for value in map(torch.Tensor.detach, loaded.values()))
    if needed > max(2 * path.stat().st_size, SMALL_BYTES):
        raise UserError(f"{path} is broken: its arrays would take {needed / 1e9:,.1f} GB, more than the file holds.")
    state = {name: torch.Tensor.detach(value).resolve_neg().numpy() for name, value in loaded.items()}
    while prefix := next((p for p in NAME_PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): array for name, array in state.items()}
    return state


def _check_kind(path: Path) -> None:
    """Raises UserError if a file is nothing that torch.save writes, or would be too large when it is unpacked."""
    with open_regular_file(path) as file:
        start = file.read(1024)
    if not start:
        raise UserError(f"{path} is broken: it is empty. Was the download interrupted?")
    for magic, kind in KINDS.items():
        if start.startswith(magic):
            raise UserError(f"{path} is {kind}.")
    if re.match(rb"\s*<(!doctype|html|head|\?xml)", start.removeprefix(b"\xef\xbb\xbf"), re.IGNORECASE):
        raise UserError(
            f"{path} is broken: it is a web page, not a state dict. The download gave a page instead of the file; open "
            "it in a browser to see why."
        )
    if start[8:9] == b"{" and 0 < int.from_bytes(start[:8], "little") < path.stat().st_size:
        raise UserError(f"{path} is a .safetensors file; only files of torch.save can be converted.")
    if start.startswith(ZIP):
        _check_zip(path)
    elif _is_text(start) and not called_functions(path):
        text = start.decode(errors="replace").strip().split("\n")[0][:60]
        raise UserError(f"{path} is broken: it is a text that begins with {text!r}, not a state dict.")


def _is_text(start: bytes) -> bool:
    text = start[:-4] if len(start) == 1024 else start  # the last letter may be cut
    return (
        len(start) > 4
        and text.decode(errors="ignore").encode() == text
        and not re.search(rb"[\x00-\x08\x0e-\x1f]", text)
    )


def _check_zip(path: Path) -> None:
    """Raises UserError if a zip archive is not one of torch.save, unpacks to too much, or has damaged files."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # for a damaged archive, zipfile raises anything from OSError to NotImplementedError
        raise UserError(f"{path} is broken, or not a state dict written by torch.save: {error}") from error
    names = {entry.filename.rsplit("/", 1)[-1] for entry in entries}
    if "data.pkl" not in names:
        listed = ", ".join(entry.filename[:100] for entry in entries[:3])
        raise UserError(f"{path} is a zip archive without a state dict; it holds {listed}. Unpack it first.")
    if "constants.pkl" in names:
        raise UserError(f"{path} is a TorchScript archive, which holds a program and not only weights. {RESAVE}")
    unpacked, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > max(2 * size, SMALL_BYTES):
        raise UserError(f"{path} has {size / 1e6:.1f} MB and would unpack to {unpacked / 1e6:,.1f} MB: it is refused.")
    _check_crcs(path, entries)


def _check_crcs(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Raises UserError if a file in a zip archive differs from its checksum, which torch.load doesn't compare."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in entries:
                if entry.CRC:  # torch.save writes 0 after torch.serialization.set_crc32_options(False)
                    with archive.open(entry) as file:
                        while file.read(2**20):
                            pass
    except Exception as error:  # as in _check_zip
        raise UserError(f"{path} is broken: {error}. Download or copy it again.") from error


def _load(path: Path) -> Any:
    """What torch.save has written to a file. Raises UserError if it is broken, or not data alone."""
    torch = import_torch()
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_Ignored, name) for name in IGNORED]):
            warnings.simplefilter("ignore")  # a newer pickle protocol; if it can't be read, there is an error, too
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # for a broken file, torch raises anything from EOFError to KeyError
        match = re.search(r"(?:GLOBAL|function) ([\w.]+)", str(error))
        functions = [match[1]] if match else called_functions(path)
        if isinstance(error, pickle.UnpicklingError) and functions:
            raise UserError(
                f"{path} is refused: it would call {functions[0]:.200}, which a state dict does not need. "
                f"Nothing in it was executed. {RESAVE}"
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        # torch's first line may advise to load the file without its protection, which nobody should.
        reason = re.sub(r"\s*(Weights only load failed|In PyTorch 2\.6|Re-running|Please file).*", "", reason)
        reason = reason[:300] or "it can't be unpickled"
        raise UserError(f"{path} is broken, or not a state dict written by torch.save: {reason}") from error


class _Ignored:
    """Stands for an object beside the weights: takes its arguments and state, and ignores them."""

    def __new__(cls, *arguments: object, **keywords: object) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *arguments: object, **keywords: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _unwrap(loaded: Any, path: Path) -> dict[Any, Any]:
    """The state dict in what a trainer has saved. Raises UserError if there is none."""
    torch = import_torch()
    for _ in range(4):  # wrappers inside wrappers
        if not isinstance(loaded, dict) or not loaded:
            raise UserError(f"{path} holds no state dict, but {'nothing' if loaded == {} else type(loaded).__name__}.")
        tensors = [value for value in loaded.values() if isinstance(value, torch.Tensor)]
        wrapped = [name for name in (*WRAPPERS, *AVERAGES) if isinstance(loaded.get(name), dict) and loaded[name]]
        # Beside a wrapped state dict, trainers save an epoch or a score, which may be a tensor of one number.
        if tensors and not (wrapped and all(value.ndim == 0 for value in tensors)):
            return loaded
        dicts = [name for name, value in loaded.items() if isinstance(value, dict) and value]
        # Under other names, only what is a state dict itself.
        named = wrapped + [n for n in dicts if all(isinstance(value, torch.Tensor) for value in loaded[n].values())]
        if not named:
            break
        others = [
            name
            for name in dict.fromkeys(named[1:])
            if name != named[0] and (name in wrapped or loaded[name].keys() == loaded[named[0]].keys())
        ]
        if others:
            print(
                f"{path}: read the weights under {named[0]!r}; there are also {first_few(others)}. To convert those, "
                "save them alone."
            )
        loaded = loaded[named[0]]
    found = first_few([f"{name!s:.50} ({_describe(value)})" for name, value in loaded.items()])
    raise UserError(f"{path} holds no state dict. It holds {found}. {RESAVE}")


def _describe(value: Any) -> str:
    """The kind of an object in a file: of tensors what makes them unusable."""
    if not isinstance(value, import_torch().Tensor):
        return "an object of the trainer" if isinstance(value, _Ignored) else type(value).__name__
    if value.is_nested:
        return f"{value.dtype}, nested"
    if value.device.type != "cpu":
        return f"{value.dtype} on the device {value.device.type}, without values"
    if str(value.layout) != "torch.strided":
        return f"{value.dtype}, {str(value.layout).removeprefix('torch.')}"
    return str(value.dtype)


def first_ten(lines: Sequence[str]) -> list[str]:
    """The first ten lines of a list for a message, and how many more there are."""
    return [*lines[:10], *([f"  ... and {len(lines) - 10:,} more"] if len(lines) > 10 else [])]


def called_functions(path: Path) -> list[str]:
    """The functions that unpickling a file would call, except PyTorch's own; read without unpickling."""
    with path.open("rb") as file:
        content = file.read(SMALL_BYTES)  # arrays follow
    if content.startswith(ZIP):
        try:
            with zipfile.ZipFile(path) as archive:
                content = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".pkl"))
        except Exception:  # as in _check_zip
            return []
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
    return [name for name in names if not name.startswith(("torch.", "collections.")) and name not in IGNORED]


def write_torch(state: dict[str, np.ndarray], path: Path) -> None:
    """Writes a state dict with torch.save, atomically.

    Args:
      state: name -> array of any shape. It is emptied: each array is freed once it is copied into torch's layout.
      path: of the file.

    Raises:
      UserError: PyTorch is not installed.
      OSError: the file can't be written.
    """
    torch = import_torch()
    tensors = {}
    for name in list(state):
        tensors[name] = torch.from_numpy(np.require(state.pop(name), requirements=("C", "W")))
    with atomic_write(path) as temporary:
        try:
            torch.save(tensors, temporary)
        except RuntimeError as error:  # torch's own, when the disk is full
            raise OSError(str(error).splitlines()[0]) from error


def read_safetensors(
    path: Path,
    check: Callable[[dict[str, np.ndarray]], object] | None = None,
    prefixes: tuple[str, ...] = ("",),
    dtypes: Collection[str] = ("F32", "I64"),
) -> dict[str, np.ndarray]:
    """Reads the arrays of a .safetensors file.

    Args:
      path: of the file.
      check: called before anything is read, with arrays of the same names, shapes and dtypes that take no memory; it
        raises UserError if they are not those that are expected.
      prefixes: only arrays are read whose names begin with one of these.
      dtypes: those that the file may have, of SAFETENSORS_DTYPES.

    Returns:
      name -> array, of the shape and dtype in the file.

    Raises:
      UserError: as `read_torch`, and as `check`.
    """
    from safetensors import safe_open

    if not path.exists():
        raise UserError(f"There is no file {path}.")
    size = check_regular_file(path, MAX_TORCH_BYTES)
    with open_regular_file(path) as file:
        header = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= header <= min(size - 8, MAX_HEADER_BYTES):
        raise UserError(f"{path} is broken, or not a .safetensors file: it would have a header of {header:,} bytes.")
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            found = {name: array.get_dtype() for name, array in slices.items()}
            unsupported = [f"  {name:.200}: {dtype}" for name, dtype in found.items() if dtype not in dtypes]
            if unsupported:
                heading = f"{path}: only float32 weights can be converted. Found instead:"
                raise UserError("\n".join([heading, *first_ten(unsupported)]))
            shapes = {name: tuple(array.get_shape()) for name, array in slices.items()}
            if sum(math.prod(shape) for shape in shapes.values()) > size // 4:
                raise UserError(f"{path} is broken: its arrays would be larger than the file.")
            if check is not None:
                zeros = {name: np.zeros((), SAFETENSORS_DTYPES[dtype]) for name, dtype in found.items()}
                check({name: np.broadcast_to(zeros[name], shape) for name, shape in shapes.items()})
            return {name: file.get_tensor(name) for name in found if name.startswith(prefixes)}
    except (UserError, OSError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # SafetensorError, what numpy makes of impossible shapes, and panics
        raise UserError(f"{path} is broken, or not a .safetensors file: {error!s:.300}") from error
