"""HDF5 and MATLAB files that lead elsewhere, or stand for more than they hold, read through the readers."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fake_datasets import CLAP, box, write_a2d, write_jhmdb
from reader_checks import read_all
from scipy.io import savemat

from input_pipeline.readers import array_files
from input_pipeline.readers.a2d_sentences import A2DSentences
from input_pipeline.readers.jhmdb_sentences import JHMDBSentences
from input_pipeline.types import Skipped

H5 = "text_annotations/a2d_annotation_with_instances/walker/00007.h5"
MAT = f"puppet_mask/clap/{CLAP}/puppet_mask.mat"
PLANES = np.stack([box(4, 10).T, box(30, 12).T]).astype(np.uint8)  # of instances 0 and 1 in H5


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_a2d(tmp_path / "a2d")


# -- HDF5


def store(file: h5py.File, **arrays: Any) -> None:
    for name, array in {"instance": [0, 1], "reMask": PLANES, **arrays}.items():
        if array is not None:
            file[name] = array


def external_link(file: h5py.File, other: Path) -> None:
    store(file, reMask=h5py.ExternalLink(str(other), "/reMask"))


def external_instances(file: h5py.File, other: Path) -> None:
    store(file, instance=h5py.ExternalLink(str(other), "/instance"))


def soft_link_out(file: h5py.File, other: Path) -> None:
    store(file, group=h5py.ExternalLink(str(other), "/"), reMask=h5py.SoftLink("/group/reMask"))


def external_storage(file: h5py.File, other: Path) -> None:
    store(file, reMask=None)
    file.create_dataset("reMask", PLANES.shape, "u1", external=[(str(other), 0, PLANES.size)])


def virtual_dataset(file: h5py.File, other: Path) -> None:
    store(file, reMask=None)
    layout = h5py.VirtualLayout(PLANES.shape, "u1")
    layout[:] = h5py.VirtualSource(str(other), "reMask", PLANES.shape)
    file.create_virtual_dataset("reMask", layout)


def virtual_pipe(file: h5py.File, other: Path) -> None:
    """HDF5 opens the pipe, and waits, as soon as it is asked for the shape."""
    store(file, reMask=None)
    os.mkfifo(other.with_name("pipe"))
    shape, unlimited = PLANES.shape, slice(0, h5py.h5s.UNLIMITED)
    layout = h5py.VirtualLayout(shape, "u1", maxshape=(None, *shape[1:]))
    source = h5py.VirtualSource(str(other.with_name("pipe")), "reMask", shape, maxshape=(None, *shape[1:]))
    layout[unlimited, :, :] = source[unlimited, :, :]
    file.create_virtual_dataset("reMask", layout)


def bomb(file: h5py.File, other: Path) -> None:
    """A chunk that unpacks to 500 times what it claims."""
    store(file, reMask=None)
    masks = file.create_dataset("reMask", PLANES.shape, "u1", chunks=PLANES.shape, compression="gzip")
    masks.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(500 * PLANES.size), 9))


def huge_chunk(file: h5py.File, other: Path) -> None:
    store(file, instance=None)
    file.create_dataset("instance", (2,), "f8", maxshape=(None,), chunks=(10**8,), compression="gzip")


LINKED, TOO_LARGE = "the h5 file leads to other files: only what it holds itself is read", array_files.TOO_LARGE


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (external_link, LINKED),
        (external_instances, LINKED),
        (soft_link_out, LINKED),
        (external_storage, LINKED),
        (virtual_dataset, LINKED),
        (virtual_pipe, LINKED),
        (bomb, TOO_LARGE),
        (huge_chunk, TOO_LARGE),
        (lambda file, other: store(file, reMask=[[["1"] * 48] * 64] * 2), "the h5 file holds no numbers"),
        (lambda file, other: store(file, reMask=h5py.Empty("u1")), "the h5 file can't be read"),
        (lambda file, other: file.create_group("reMask"), "the h5 file can't be read"),
    ],
)
def test_h5_file_that_is_more_than_it_holds(
    raw: Path, write: Callable[[h5py.File, Path], None], reason: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        store(file)
    with h5py.File(raw / H5, "w") as file:
        write(file, other)
    pairs, skipped = read_all(A2DSentences(raw), "walker")
    assert [pair.frame_index for pair in pairs] == [1, 12]
    assert Skipped(str(raw / H5), reason) in skipped


@pytest.mark.parametrize("chunks", [(1, 7, 9), (2, 64, 48), True], ids=str)
@pytest.mark.parametrize("compression", ["gzip", None])
def test_packed_h5_file(raw: Path, chunks: tuple[int, ...], compression: str | None) -> None:
    with h5py.File(raw / H5, "w") as file:
        file.create_dataset("instance", data=[0, 1], chunks=(1,), compression=compression)
        file.create_dataset(
            "reMask", data=PLANES, chunks=chunks, compression=compression, shuffle=True, fletcher32=True
        )
    pair = read_all(A2DSentences(raw), "walker")[0][1]
    np.testing.assert_array_equal(pair.masks[0], box(4, 10))
    np.testing.assert_array_equal(pair.masks[1], box(30, 12))


# -- MATLAB


def matlab_file(*elements: bytes) -> bytes:
    return b"MATLAB 5.0".ljust(124) + struct.pack("<H", 0x100) + b"IM" + b"".join(elements)


def packed(content: bytes) -> bytes:
    content = zlib.compress(content, 9)
    return struct.pack("<II", 15, len(content)) + content


def nested_cells(depth: int) -> bytes:
    """A cell in a cell in a cell ..., marked as logical, as which SciPy lists it."""
    heads, size = [], 0
    for level in range(depth):
        name = b"part_mask" if level == depth - 1 else b""
        head = struct.pack("<IIIIIIiiII", 6, 8, 0x201, 0, 5, 8, 1, 1, 1, len(name)) + name + bytes(-len(name) % 8)
        size += len(head)
        heads.append(struct.pack("<II", 14, size) + head)
        size += 8
    return b"".join(reversed(heads))


def claimed(path: Path, old: bytes, new: bytes) -> bytes:
    """The file with another number in one of its headers."""
    savemat(path, {"part_mask": np.ones((48, 64, 16), np.uint8)})
    content = path.read_bytes()
    assert old in content
    return content.replace(old, new, 1)


UNREADABLE = "puppet_mask.mat can't be read"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: matlab_file(packed(bytes(10**8))), TOO_LARGE),
        (lambda path: matlab_file(packed(nested_cells(100_000))), UNREADABLE),
        (lambda path: matlab_file(nested_cells(100_000)), UNREADABLE),
        (lambda path: claimed(path, struct.pack("<3I", 48, 64, 16), struct.pack("<3I", 48, 64, 2**30)), UNREADABLE),
        (lambda path: claimed(path, struct.pack("<2I", 2, 49152), struct.pack("<2I", 2, 2**32 - 16)), UNREADABLE),
        (lambda path: matlab_file(bytes(10**6)), UNREADABLE),
    ],
    ids=["bomb", "packed cells", "cells", "shape", "size", "zeros"],
)
def test_mat_file_that_is_more_than_it_holds(
    tmp_path: Path, make: Callable[[Path], bytes], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_jhmdb(tmp_path / "jhmdb")
    monkeypatch.setattr(array_files, "MAX_ARRAY_BYTES", 2 * 10**7)
    (raw / MAT).write_bytes(make(raw / MAT))
    assert read_all(JHMDBSentences(raw), CLAP) == ([], [Skipped(str(raw / MAT), reason)])


def test_mat_file_without_compression(tmp_path: Path) -> None:
    raw = write_jhmdb(tmp_path / "jhmdb")
    masks = np.stack([box(index, 2 * index) for index in range(1, 17)], axis=-1)
    savemat(raw / MAT, {"first": {"a": 1}, "part_mask": masks, "last": "text"})
    for pair in read_all(JHMDBSentences(raw), CLAP)[0]:
        np.testing.assert_array_equal(pair.masks[0], box(pair.frame_index, 2 * pair.frame_index))
