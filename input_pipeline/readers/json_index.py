"""Large JSON files: where each entry of an object lies in the file, so that one entry at a time is parsed.

The file is read once, in pieces, and no entry is parsed or kept meanwhile. MeViS' file of masks has over 400 MB, which
take several GB as Python objects.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from input_pipeline.files import open_regular_file
from input_pipeline.readers.raw_files import MAX_JSON_BYTES, shorten, unique_keys

CHUNK_BYTES = 2**20
#: Limits for a string, such as an encoded mask, and for the keys of an object. MeViS has 2,000 videos, 8,000 objects.
MAX_STRING_BYTES = 2**24
MAX_KEYS = 2_000_000
MAX_DEPTH = 500  # what Python's own parser takes is about the same

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
#: Strings, punctuation and other values; a lone quote begins a string that is not complete.
_TOKEN = re.compile(_STRING + rb'|["{}\[\],:]|[^\s"{}\[\],:]++', re.DOTALL)
#: What matters inside a value that is skipped.
_NESTING = re.compile(_STRING + rb'|["{}\[\]]', re.DOTALL)
_CLOSING = {b"{": b"}", b"[": b"]"}


@dataclasses.dataclass(frozen=True)
class JsonIndex:
    """The entries of an object in a JSON file.

    Attributes:
      path: the file.
      entries: key -> where its value begins and ends, in bytes.
    """

    path: Path
    entries: dict[str, tuple[int, int]]

    def size(self, key: str) -> int:
        """The length of an entry, in bytes."""
        begin, end = self.entries[key]
        return end - begin

    def read(self, key: str) -> Any:
        """Parses an entry.

        Raises:
          OSError: the file can't be read.
          ValueError: the entry is not JSON, too long, or names a key of an object twice.
          RecursionError: it is nested too deeply.
        """
        with open_regular_file(self.path) as file:
            return _parse(file, *self.entries[key])


def index_json(path: Path, *parents: str) -> JsonIndex:
    """Finds the entries of an object in a JSON file.

    Args:
      path: a JSON file in UTF-8, with or without a byte order mark, of any size.
      parents: keys that lead to the object; none for the outermost one.

    Raises:
      OSError: the file can't be read.
      ValueError: it is not a regular file, is not JSON, has no such object, or one that names a key twice.
    """
    with open_regular_file(path) as file:
        tokens = _Tokens(file)
        if tokens.next().text != b"{":
            raise ValueError("it is not a JSON object")
        entries = _index_object(tokens, parents)
        if (token := tokens.next()).text:
            raise ValueError(f"unexpected {shorten(token.text[:20].decode(errors='replace'))} at byte {token.begin:,}")
    if entries is None:
        raise ValueError(f'it has no "{parents[0]}"')
    return JsonIndex(path, entries)


class Item(NamedTuple):
    """An element of an array, parsed.

    Attributes:
      key: of the array.
      begin, end: where the element lies in the file, in bytes.
      value: the element.
    """

    key: str
    begin: int
    end: int
    value: Any


def iterate_arrays(path: Path, *keys: str) -> Iterator[Item]:
    """Yields the elements of arrays in a JSON file one by one, without keeping them.

    Args:
      path: as in `index_json`.
      keys: of the arrays, in the outermost object. If the file is an array itself, its elements have the key "".

    Raises:
      As `index_json`, and what `JsonIndex.read` raises.
    """
    with open_regular_file(path) as file, open_regular_file(path) as elements:
        tokens = _Tokens(file)
        first = tokens.next()
        if first.text == b"[":
            arrays: Iterator[tuple[str, _Token]] = iter([("", first)])
        elif first.text == b"{":
            arrays = _arrays_of_object(tokens, keys)
        else:
            raise ValueError("it is neither a JSON object nor an array")
        found = set()
        for key, _ in arrays:
            found.add(key)
            token = tokens.next()
            while token.text != b"]":
                end = tokens.skip(token)
                yield Item(key, token.begin, end, _parse(elements, token.begin, end))
                separator = tokens.next()
                if separator.text not in (b",", b"]"):
                    raise ValueError(f"expected a comma at byte {separator.begin:,}")
                token = tokens.next() if separator.text == b"," else separator
        if first.text == b"{" and (missing := set(keys) - found):
            raise ValueError(f"it has no array {', '.join(sorted(missing))}")
        if (token := tokens.next()).text:
            raise ValueError(f"unexpected text at byte {token.begin:,}")


def _arrays_of_object(tokens: _Tokens, keys: tuple[str, ...]) -> Iterator[tuple[str, _Token]]:
    """Yields the keys of an object that lead to arrays, each when the first element is next."""
    for key, value in _members(tokens):
        if key in keys and value.text == b"[":
            yield key, value
        else:
            tokens.skip(value)


def _parse(file: BinaryIO, begin: int, end: int) -> Any:
    if end - begin > MAX_JSON_BYTES:
        raise ValueError(f"an entry of {end - begin:,} bytes; the limit is {MAX_JSON_BYTES:,}")
    file.seek(begin)
    return json.loads(file.read(end - begin).decode("utf-8"), object_pairs_hook=unique_keys)


class _Token(NamedTuple):
    """A token, b"" at the end of the file, and where it begins and ends in the file."""

    text: bytes
    begin: int
    end: int


def _index_object(tokens: _Tokens, parents: tuple[str, ...]) -> dict[str, tuple[int, int]] | None:
    """The entries of the object that has just begun, or of the one that `parents` lead to; None if there is none."""
    found: dict[str, tuple[int, int]] | None = None if parents else {}
    for key, value in _members(tokens):
        if parents and key == parents[0] and value.text == b"{":
            found = _index_object(tokens, parents[1:])
        else:
            end = tokens.skip(value)
            if found is not None and not parents:
                found[key] = value.begin, end
    return found


def _members(tokens: _Tokens) -> Iterator[tuple[str, _Token]]:
    """Yields each key of the object that has just begun, with the first token of its value; the caller reads the rest.

    Raises ValueError if a key occurs twice.
    """
    keys: set[str] = set()
    token = tokens.next()
    while token.text != b"}" or keys:
        if not token.text.startswith(b'"'):
            raise ValueError(f"expected a key at byte {token.begin:,}")
        key = json.loads(token.text.decode("utf-8"))
        if key in keys:
            raise ValueError(f"{shorten(key)} occurs twice in one object")
        if len(keys) >= MAX_KEYS:
            raise ValueError(f"an object has more than {MAX_KEYS:,} keys")
        keys.add(key)
        if (colon := tokens.next()).text != b":":
            raise ValueError(f"expected a colon at byte {colon.begin:,}")
        yield key, tokens.next()
        separator = tokens.next()
        if separator.text == b"}":
            return
        if separator.text != b",":
            raise ValueError(f"expected a comma at byte {separator.begin:,}")
        token = tokens.next()


class _Tokens:
    """The tokens of a JSON file, read in pieces."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._buffer, self._position = b"", 0  # the next token begins at or after the position
        self._offset = 0  # of the buffer in the file
        self._read_more()
        if self._buffer.startswith(b"\xef\xbb\xbf"):
            self._position = 3

    def next(self) -> _Token:
        """The next token."""
        while True:
            match = _TOKEN.search(self._buffer, self._position)
            complete = match and match[0] != b'"' and (match.end() < len(self._buffer) or match[0] in b"{}[],:")
            if match and complete:
                break
            self._position = match.start() if match else len(self._buffer)
            if not self._read_more():
                match = _TOKEN.match(self._buffer)
                if match is None:
                    return _Token(b"", self._offset, self._offset)
                if match[0] == b'"':
                    raise ValueError(f"a string that begins at byte {self._offset:,} does not end")
                break
        self._position = match.end()
        return _Token(match[0], self._offset + match.start(), self._offset + match.end())

    def skip(self, first: _Token) -> int:
        """Skips a value that begins with a token. Returns where it ends in the file."""
        if first.text not in _CLOSING:
            if first.text in (b"", b"}", b"]", b",", b":"):
                raise ValueError(f"expected a value at byte {first.begin:,}")
            return first.end
        closing = [_CLOSING[first.text]]
        while True:
            for match in _NESTING.finditer(self._buffer, self._position):
                text = match[0]
                if text in _CLOSING:
                    closing.append(_CLOSING[text])
                    if len(closing) > MAX_DEPTH:
                        raise ValueError(
                            f"more than {MAX_DEPTH} nested values at byte {self._offset + match.start():,}"
                        )
                elif text == b'"':
                    self._position = match.start()
                    break
                elif not text.startswith(b'"'):
                    if text != closing.pop():
                        raise ValueError(f"a bracket does not fit at byte {self._offset + match.start():,}")
                    if not closing:
                        self._position = match.end()
                        return self._offset + match.end()
            else:
                self._position = len(self._buffer)
            if not self._read_more():
                raise ValueError(f"a value that begins at byte {first.begin:,} does not end")

    def _read_more(self) -> bool:
        """Reads another piece of the file, and drops what lies before the position. Returns False at its end."""
        rest = self._buffer[self._position :]
        if len(rest) > MAX_STRING_BYTES:
            raise ValueError(
                f"a value of more than {MAX_STRING_BYTES:,} bytes at byte {self._offset + self._position:,}"
            )
        chunk = self._file.read(max(CHUNK_BYTES, len(rest)))
        self._offset += self._position
        self._buffer, self._position = rest + chunk, 0
        return bool(chunk)
