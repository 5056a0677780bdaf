"""What the commands share: how they end."""

from __future__ import annotations

import sys
from typing import NoReturn


def fail(message: str, status: int = 2) -> NoReturn:
    """Prints the message and exits; status 2 stands for what the user must mend."""
    print(message, file=sys.stderr)
    sys.exit(status)
