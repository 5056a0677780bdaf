"""What the commands share: how they write, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn


def fail(message: str, status: int = 2) -> NoReturn:
    """Prints the message and exits; status 2 stands for what the user must mend."""
    print(message, file=sys.stderr)
    sys.exit(status)


@contextlib.contextmanager
def whole_or_not_at_all(path: Path) -> Iterator[Path]:
    """A name in the same folder to write a file or folder under: it becomes `path`, or is gone if that fails."""
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except BaseException:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        else:
            unfinished.unlink(missing_ok=True)
        raise


def write_json(value: Any, path: Path) -> None:
    """Writes json whole or not at all."""
    with whole_or_not_at_all(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n")
