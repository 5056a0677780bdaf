"""Pickle files of plain lists, dictionaries, strings and numbers, such as RefCOCO's; nothing in them is executed."""

from __future__ import annotations

import io
import itertools
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

from input_pipeline.errors import UserError
from input_pipeline.files import read_limited
from input_pipeline.readers.raw_files import MAX_TEXT_BYTES

#: What builds plain values. Whatever names a class, calls something or refers to outside of the file is not among them.
_ALLOWED = frozenset(
    "PROTO FRAME STOP MARK EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 "
    "TUPLE2 TUPLE3 NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING "
    "SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET "
    "MEMOIZE".split()
)
#: Limit for all values together. A value that several lists or dictionaries share counts for each of them. The
#: references of gRefCOCO take about 200 MB.
MAX_UNPACKED_BYTES = 512 * 2**20
#: Estimated size of a value, without the letters of a string.
VALUE_BYTES = 16
_PUT = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))


class _PlainUnpickler(pickle.Unpickler):
    """Knows no class. The check before it already refuses every file that names one; this is a second check."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError("the file names a class")

    def persistent_load(self, identifier: Any) -> Any:
        raise pickle.UnpicklingError("the file refers to something outside of it")


def read_plain_pickle(path: Path) -> Any:
    """Reads a pickle file of any protocol. Strings of Python 2 are read as Latin-1.

    Raises:
      UserError: it can't be read, holds anything but plain values, or more than `MAX_UNPACKED_BYTES` of them.
    """
    try:
        content = read_limited(path, MAX_TEXT_BYTES)
        end = 0
        for number, (opcode, argument, position) in enumerate(pickletools.genops(content)):
            if opcode.name not in _ALLOWED:
                raise UserError(
                    f"{path}, byte {position}: {opcode.name}, which plain lists, dictionaries, strings and numbers "
                    "don't need. It could execute code and is not read. Download the file again from its source."
                )
            # The unpickler takes memory up to the largest index of a stored value; real files count from 0 or 1.
            if opcode.name in _PUT and not 0 <= int(argument or 0) <= number + 1:
                raise ValueError(f"index {argument} of a stored value at byte {position}")
            end = (position or 0) + 1
        values = _PlainUnpickler(io.BytesIO(content[:end]), encoding="latin-1").load()
        if _unpacked_bytes(values, {}) > MAX_UNPACKED_BYTES:
            raise UserError(
                f"{path} unpacks to more than {MAX_UNPACKED_BYTES // 2**20} MB, since it refers to the same "
                "lists again and again. Download the file again from its source."
            )
        return values
    except UserError:
        raise
    except Exception as error:  # whatever the unpickler raises for a damaged file
        raise UserError(f"{path} can't be read ({error!r:.200}). Download it again.") from error


def _unpacked_bytes(value: Any, known: dict[int, float]) -> float:
    """The size of a value, infinite if it contains itself. Those of lists and dictionaries are kept in `known`."""
    if isinstance(value, str):
        return VALUE_BYTES + len(value)
    if not isinstance(value, list | tuple | dict):
        return VALUE_BYTES
    if id(value) not in known:
        known[id(value)] = math.inf  # until it is known
        parts = itertools.chain(value, value.values()) if isinstance(value, dict) else value
        known[id(value)] = VALUE_BYTES + sum(_unpacked_bytes(part, known) for part in parts)
    return known[id(value)]
