"""Helpers for commands: flags, and files that are written completely or not at all."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

# TensorFlow and XLA print pages of log lines as they load. Every command imports this module before them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

Number = TypeVar("Number", int, float)


def at_least(number_type: Callable[[str], Number], minimum: Number) -> Callable[[str], Number]:
    """Makes an argparse type: finite numbers that are not below a minimum."""

    def parse(text: str) -> Number:
        number = number_type(text)
        if not (number >= minimum and math.isfinite(number)):
            raise argparse.ArgumentTypeError(f"{text} is below {minimum}, or not finite")
        return number

    parse.__name__ = getattr(number_type, "__name__", "number")  # argparse: "invalid int value"
    return parse


def explain_flags(error: Exception, usage: str) -> str:
    """Makes a readable message of an error that absl or ml_collections raised about the command line.

    Args:
      error: the error.
      usage: how the command is called.
    """
    if isinstance(error, AttributeError):
        # ml_collections gives the name and, if it has one, «Did you mean "..."», in one quoted string.
        name, *suggestion = re.findall(r"\w+", str(error).replace("\\n", " ").partition(" instead of")[0])
        hint = f" Did you mean '{suggestion[-1]}'?" if suggestion else ""
        return f"The configuration has no field '{name}'.{hint} configs/base.py lists all of them."
    # ml_collections includes the traceback of a configuration file; its last line is the error.
    message = str(error).strip()
    return f"{message.splitlines()[-1].strip() if 'Traceback' in message else message}\n{usage}"


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, for a file or a folder to be written.

    On success it is moved to `path`, where it replaces what was there; on an error it is deleted.
    """
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        if path.is_dir():  # os.replace can't replace a folder that is not empty
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
    """Writes a value as json, completely or not at all."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n")
