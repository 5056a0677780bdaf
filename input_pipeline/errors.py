"""The error for what the user must mend."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong data, a wrong configuration, or a wrong flag.

    The message names the file, with the line if there is one, and says what to do. Commands print it without a
    traceback and exit with status 2.
    """
