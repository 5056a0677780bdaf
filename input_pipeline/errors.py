"""Errors that the user can fix, and how commands report them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn


class UserError(ValueError):
    """Wrong data, a wrong configuration or a wrong flag: something that the user can fix.

    The message names the file, with the line if there is one, and says what to do. Commands print it without a
    traceback and exit with status 2.
    """


def fail(message: str, status: int = 2) -> NoReturn:
    """Prints a message to stderr and exits. Status 2 means that the user has something to fix."""
    print(message, file=sys.stderr)
    sys.exit(status)


@contextlib.contextmanager
def exit_on_error(interrupt_message: str, describe_os_error: Callable[[OSError], str | None] = str) -> Iterator[None]:
    """Reports errors that the user can fix with one message and an exit status, without a traceback.

    A `UserError` or an `OSError` exits with status 2, Ctrl-C with 130. Anything else is a bug, and keeps its traceback.

    Args:
      interrupt_message: printed after Ctrl-C.
      describe_os_error: makes the message for an `OSError`; None means that the user can't fix it.
    """
    try:
        yield
    except UserError as error:
        fail(str(error))
    except OSError as error:
        message = describe_os_error(error)
        if message is None:
            raise
        fail(message)
    except KeyboardInterrupt:
        fail(interrupt_message, status=130)
