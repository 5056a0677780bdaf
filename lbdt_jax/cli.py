"""What the commands share: how they write, what they say of wrong flags, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# TensorFlow and XLA greet with pages of log lines. Every command imports this module before it loads them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def explain_flags(error: Exception, usage: str) -> str:
    """What is wrong with a command line that absl or ml_collections has refused, for people."""
    if isinstance(error, AttributeError):
        # ml_collections gives the name and, where it can, «Did you mean "..."», in one quoted string.
        name, *hint = re.findall(r"\w+", str(error).replace("\\n", " ").partition(" instead of")[0])
        meant = f" Did you mean '{hint[-1]}'?" if hint else ""
        return f"The configuration has no field '{name}'.{meant} configs/base.py lists all of them."
    # ml_collections quotes the traceback of a configuration file; its last line says what is wrong.
    message = str(error).strip()
    return f"{message.splitlines()[-1].strip() if 'Traceback' in message else message}\n{usage}"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A name in the same folder to write a file or folder under: it becomes `path`, or is gone if that fails.

    What was at `path` is replaced.
    """
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        if path.is_dir():  # a folder can't take another one's place at once
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.replace(path, old)
            os.replace(unfinished, path)
            shutil.rmtree(old)
        else:
            os.replace(unfinished, path)
    except BaseException:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        else:
            unfinished.unlink(missing_ok=True)
        raise


def write_json(value: Any, path: Path) -> None:
    """Writes json whole or not at all."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n")
