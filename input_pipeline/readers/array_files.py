"""Masks in HDF5 and MATLAB files, checked before they are read.

An HDF5 file can lead to other files, and in both formats a few bytes can stand for gigabytes. Only what the file itself
holds is read, and only if it has the size of masks.
"""

from __future__ import annotations

import io
import itertools
import math
import struct
import zlib
from collections.abc import Collection
from pathlib import Path

import h5py
import numpy as np
from scipy.io import loadmat, whosmat

from input_pipeline.errors import UserError
from input_pipeline.files import check_regular_file
from input_pipeline.readers.raw_files import MASK_SIZE

#: Limit for an array, and for a MATLAB file. The masks of J-HMDB's longest video have 25 MB if each pixel is a float64.
MAX_ARRAY_BYTES = 256 * 2**20
#: Limit for the instances in a frame: a broken file may claim any number.
MAX_INSTANCES = 1000
#: Limit for the variables of a MATLAB file; J-HMDB's have one.
MAX_VARIABLES = 1000

TOO_LARGE = "the file unpacks to more than masks need"

#: What MATLAB and h5py apply to chunks by default. Others could unpack to any size.
_FILTERS = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32)
_CHECKSUM_BYTES = 4

# The format of MATLAB 5 files: https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf
_MAT_HEADER_BYTES = 128
_MAT_BYTE_ORDERS = {b"IM": "<", b"MI": ">"}
_MAT_MATRIX, _MAT_COMPRESSED = 14, 15
_MAT_FLAGS_OFFSET, _MAT_LOGICAL, _MAT_NUMBER_CLASSES = 16, 0x200, range(6, 16)
_MAT_NUMBERS = ("double", "single", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))


def read_h5_masks(path: Path, size: tuple[int, int], instances: Collection[int | None]) -> dict[int, np.ndarray]:
    """Reads the masks of some instances from an h5 file.

    The files were written by MATLAB, so `reMask` is (n, W, H), or (W, H) if `instance` has a single id. The number of
    ids decides which, not the number of axes, and there may be more masks than ids.

    Args:
      path: the h5 file.
      size: (H, W) of the frame.
      instances: ids to look for.

    Returns:
      Id -> (H, W) bool, in the order of the ids, for those that are in the file.

    Raises:
      UserError: the file is missing, can't be read, leads to other files, or its masks and the frame differ in size.
    """
    try:
        check_regular_file(path)
    except FileNotFoundError as error:
        raise UserError("h5 file missing") from error
    except (OSError, UserError) as error:
        raise UserError("the h5 file can't be read") from error
    try:
        with h5py.File(path, "r") as file:
            instance_ids, masks = _open_h5_dataset(file, "instance"), _open_h5_dataset(file, "reMask")
            ids = _read_ids(instance_ids)
            if masks.shape[-2:] != size[::-1]:
                raise UserError(MASK_SIZE)
            single = len(ids) == 1 and masks.ndim == 2
            if not single and (masks.ndim != 3 or len(masks) < len(ids)):
                raise UserError("the h5 file has fewer masks than instances")
            return {
                instance: to_mask(_read_h5_array(masks, None if single else ids.index(instance)).T)
                for instance in sorted(set(ids).intersection(instances))
            }
    except UserError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, zlib.error) as error:
        raise UserError("the h5 file can't be read") from error


def to_mask(values: np.ndarray) -> np.ndarray:
    """Numbers or bool of any shape -> bool, True where above 0. Raises UserError for NaN, as in damaged files."""
    if np.isnan(values).any():
        raise UserError("the mask holds values that are not a number")
    return values > 0


def _read_ids(instance: h5py.Dataset) -> list[int]:
    """The ids of the masks in an h5 file. Raises UserError if they are not integers."""
    if instance.size > MAX_INSTANCES or instance.dtype.kind not in "iuf":
        raise UserError("the instances of the h5 file are not a list of numbers")
    ids = np.ravel(_read_h5_array(instance)).tolist()
    if not all(float(value).is_integer() for value in ids):
        raise UserError("the instances of the h5 file are not whole numbers")
    return [int(value) for value in ids]


def _open_h5_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Opens an array of an HDF5 file. Neither it nor its size comes from another file.

    Raises:
      UserError: it is a link, a virtual dataset, or stored in another file.
      KeyError: the file has no such array.
    """
    link = file.get(name, getlink=True)
    dataset = file[name] if isinstance(link, h5py.HardLink) else None
    if dataset is not None and not isinstance(dataset, h5py.Dataset):
        raise KeyError(name)
    # In this order: to ask a virtual dataset for its shape opens the files that it consists of.
    if link is not None and (dataset is None or dataset.is_virtual or dataset.external):
        raise UserError("the h5 file leads to other files: only what it holds itself is read")
    if dataset is None:
        raise KeyError(name)
    return dataset


def _read_h5_array(dataset: h5py.Dataset, plane: int | None = None) -> np.ndarray:
    """Reads an array of numbers, or of bool.

    Args:
      dataset: from `_open_h5_dataset`.
      plane: index into the first axis; None reads the whole array.

    Raises:
      UserError: it holds something else, or would take more memory than masks need.
      zlib.error, OSError: it is damaged.
    """
    if dataset.dtype.kind not in "buif":
        raise UserError("the h5 file holds no numbers")
    shape = dataset.shape if plane is None else dataset.shape[1:]
    if math.prod(shape) * dataset.dtype.itemsize > MAX_ARRAY_BYTES:
        raise UserError(TOO_LARGE)
    if dataset.chunks is not None:
        _check_chunks(dataset, plane)
    return np.asarray(dataset[()] if plane is None else dataset[plane])


def _check_chunks(dataset: h5py.Dataset, plane: int | None) -> None:
    """Raises UserError if a chunk to be read is larger than it claims: HDF5 unpacks it to whatever size it has."""
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if chunk_bytes > MAX_ARRAY_BYTES:
        raise UserError(TOO_LARGE)
    if len(set(filters)) < len(filters) or not set(filters).issubset(_FILTERS):
        raise UserError("the h5 file is packed in an unusual way: pack it with gzip or not at all")
    ranges = [range(0, length, step) for length, step in zip(dataset.shape, dataset.chunks, strict=True)]
    if plane is not None:
        ranges[0] = range(plane - plane % dataset.chunks[0], plane + 1, dataset.chunks[0])
    for offset in itertools.product(*ranges):
        chunk = dataset.id.get_chunk_info_by_coord(offset)
        if chunk.byte_offset is None:  # never written: zeros
            continue
        # What can't be packed grows a little.
        if chunk.size > chunk_bytes + chunk_bytes // 100 + 1024:
            raise UserError(TOO_LARGE)
        if h5py.h5z.FILTER_DEFLATE in filters:
            skipped_filters, content = dataset.id.read_direct_chunk(offset)
            if not skipped_filters:
                _unpack(content, chunk_bytes + _CHECKSUM_BYTES)


def _unpack(content: bytes, max_bytes: int) -> bytes:
    """Unpacks a zlib stream. Raises UserError if there is more than `max_bytes` in it, zlib.error if it is damaged."""
    unpacker = zlib.decompressobj()
    unpacked = unpacker.decompress(content, max_bytes + 1)
    if len(unpacked) > max_bytes:
        raise UserError(TOO_LARGE)
    if not unpacker.eof:
        raise zlib.error("incomplete")
    return unpacked


def parse_mat_array(content: bytes, name: str) -> np.ndarray | None:
    """Reads an array of numbers, or of bool, from the content of a MATLAB 4 or 5 file.

    Args:
      content: of the file.
      name: of the variable.

    Returns:
      The array; None if the file has no such variable.

    Raises:
      UserError: the variable is of another kind, or would take more memory than masks need.
      Exception: the file can't be read. SciPy fails in a dozen ways: zlib.error, TypeError, UnboundLocalError ...
    """
    content = _unpack_mat(content)
    # The headers come first: SciPy follows cells into cells until the stack overflows.
    kinds = {kind for variable, _, kind in whosmat(io.BytesIO(content)) if variable == name}
    if not kinds:
        return None
    if not kinds.issubset(_MAT_NUMBERS):
        raise UserError(f"{name} is not a stack of masks")
    return loadmat(io.BytesIO(content), variable_names=[name])[name]


def _unpack_mat(content: bytes) -> bytes:
    """A MATLAB 5 file without compression, so that SciPy reads no more than there is; any other file as it is."""
    order = _MAT_BYTE_ORDERS.get(content[_MAT_HEADER_BYTES - 2 : _MAT_HEADER_BYTES])
    if order is None:
        return content
    unpacked = bytearray(content[:_MAT_HEADER_BYTES])
    position = _MAT_HEADER_BYTES
    for _ in range(MAX_VARIABLES):
        if position == len(content):
            return bytes(unpacked)
        kind, size = struct.unpack_from(f"{order}II", content, position)
        element = content[position : position + 8 + size]
        position += len(element)
        if len(element) < 8 + size or kind not in (_MAT_MATRIX, _MAT_COMPRESSED):
            raise ValueError("damaged")
        matrix = _unpack(element[8:], MAX_ARRAY_BYTES - len(unpacked)) if kind == _MAT_COMPRESSED else element
        (flags,) = struct.unpack_from(f"{order}I", matrix, _MAT_FLAGS_OFFSET)
        if flags & _MAT_LOGICAL and flags & 0xFF not in _MAT_NUMBER_CLASSES:  # SciPy would call a cell "logical"
            raise ValueError("damaged")
        unpacked += matrix
    raise UserError(TOO_LARGE)
