"""Errors that the user can fix, how commands report them, and messages that are safe to print."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any, NoReturn, TextIO

#: All control characters but the tab and the newline, and the marks that reverse text or end a line.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_MAX_MESSAGE, _MAX_NAME = 20_000, 100  # characters


class UserError(ValueError):
    """Wrong data, a wrong configuration or a wrong flag: something that the user can fix.

    The message names the file, with the line if there is one, and says what to do. Commands print it without a
    traceback and exit with status 2.
    """


class Terminated(KeyboardInterrupt):
    """SIGTERM, in the context `interrupt_on_sigterm`."""


def printable(text: str, encoding: str | None = None) -> str:
    r"""Escapes control characters, which could change what a terminal shows, and letters that it can't show.

    Args:
      text: may come out of a file.
      encoding: of the terminal or the file that the text is printed to; None for one that has all letters.

    Returns:
      The text with escapes such as \x1b or \xf6 in place of these characters.
    """
    text = _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def say(message: str, file: TextIO | None = None) -> None:
    """Prints a line to stdout, or to another file, that any terminal can show; see `printable`."""
    file = file or sys.stdout
    if file is not None:  # Python has no stdout if it was closed
        print(printable(message, getattr(file, "encoding", None)), file=file)


def first_few(names: Collection[object], limit: int = 10) -> str:
    """Lists the first names for a message: "a, b, c and 199,990 more"."""
    few = [str(name) for name, _ in zip(names, range(limit), strict=False)]
    listed = ", ".join(name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}..." for name in few)
    return listed + (f" and {len(names) - limit:,} more" if len(names) > limit else "")


@contextlib.contextmanager
def library_errors(describe: Callable[[BaseException], str]) -> Iterator[None]:
    """Turns everything that a library raises into a UserError: plain Exceptions, and panics, which are none.

    Args:
      describe: the message about an error.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(describe(error)) from error


def fail(message: str, status: int = 2) -> NoReturn:
    """Prints a message to stderr and exits. Status 2 means that the user has something to fix."""
    if len(message) > _MAX_MESSAGE:
        message = f"{message[:_MAX_MESSAGE]}... ({len(message) - _MAX_MESSAGE:,} more characters)"
    if sys.stderr is not None:
        with contextlib.suppress(OSError):  # nobody may be reading
            say(message, sys.stderr)
            sys.stderr.flush()
    sys.exit(status)


@contextlib.contextmanager
def exit_on_error(interrupt_message: str, describe_os_error: Callable[[OSError], str | None] = str) -> Iterator[None]:
    """Reports errors that the user can fix with one message and an exit status, without a traceback.

    A `UserError` or an `OSError` exits with status 2, Ctrl-C with 130, `Terminated` with 143. Anything else is a bug,
    and keeps its traceback. What is printed meanwhile is made printable, and nothing is said if nobody reads it any
    longer (`| head`).

    Args:
      interrupt_message: printed after Ctrl-C and `Terminated`.
      describe_os_error: makes the message for an `OSError`; None means that the user can't fix it.
    """
    with _printable_stdout():
        try:
            yield
            if sys.stdout is not None:
                sys.stdout.flush()
        except UserError as error:
            fail(str(error))
        except OSError as error:
            message = describe_os_error(error)
            if message is None:
                raise
            fail(message)
        except KeyboardInterrupt as error:
            number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
            fail(interrupt_message, status=128 + number)


@contextlib.contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """In this context SIGTERM, a scheduler's request to stop, raises `Terminated` as Ctrl-C does. Main thread only."""

    def interrupt(*_: object) -> NoReturn:
        raise Terminated

    previous_handler = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


@contextlib.contextmanager
def _printable_stdout() -> Iterator[None]:
    """Replaces stdout by one that makes everything printable."""
    if sys.stdout is None:
        yield
        return
    stdout: Any = _PrintableOutput(sys.stdout)
    with contextlib.redirect_stdout(stdout):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Python would complain about it as it exits
                stdout.flush()


class _PrintableOutput:
    """A text stream that makes everything printable. Output that nobody reads any longer is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._dropped_if_unread():
            self._stream.write(printable(text, self._stream.encoding))
        return len(text)

    def flush(self) -> None:
        with self._dropped_if_unread():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropped_if_unread(self) -> Iterator[None]:
        """After an error, drops what is buffered and what follows. Raises OSError unless the reader has gone."""
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError), open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), self._stream.fileno())
            if not isinstance(error, BrokenPipeError):
                raise
