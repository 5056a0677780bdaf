"""Helpers for commands: flags, and files that are written completely or not at all."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import reprlib
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from input_pipeline.errors import UserError, fail
from input_pipeline.files import expand_home, read_limited
from lbdt_jax.config import describe_field

# TensorFlow and XLA print pages of log lines as they load. Every command imports this module before them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

Number = TypeVar("Number", int, float)


def in_range(number_type: Callable[[str], Number], minimum: Number, maximum: Number) -> Callable[[str], Number]:
    """Makes an argparse type: numbers that are not below a minimum, nor above a maximum."""

    def parse(text: str) -> Number:
        number = number_type(text)
        if not minimum <= number <= maximum:  # nan is in no range
            raise argparse.ArgumentTypeError(f"{text:.30} is not a number from {minimum:g} to {maximum:g}")
        return number

    parse.__name__ = getattr(number_type, "__name__", "number")  # argparse: "invalid int value"
    return parse


def exit_on_help(arguments: Sequence[str], description: str) -> None:
    """Prints a command's description and its flags, and exits, if an argument asks for help.

    absl does this only in app.run; argparse by itself.
    """
    if {"-h", "-help", "--help", "--helpshort", "--helpfull"} & set(arguments[1:]):
        print(f"{description.strip()}\n{flags.FLAGS.main_module_help()}")
        sys.exit(0)


def define_config_flag(default: str | None, description: str, usage: str) -> flags.FlagHolder[ConfigDict]:
    """Defines --config, a file of configs/, and a flag for each of its fields.

    Args:
      default: the file without the flag.
      description: for --help.
      usage: how the command is called, for messages.
    """
    try:
        # Reads the command line at once, for the fields of the file.
        return config_flags.DEFINE_config_file("config", default, description, lock_config=True)
    except flags.Error as error:
        fail(explain_flags(error, usage))


def explain_flags(error: Exception, usage: str) -> str:
    """Makes a readable message of an error that absl or ml_collections raised about the command line.

    Args:
      error: the error.
      usage: how the command is called.
    """
    message = str(error).strip()
    if isinstance(error, (AttributeError, KeyError)):
        # ml_collections: 'name', and below it, if it has one, «Did you mean "..."»; once more in quotes, or twice.
        name, *suggestion = re.findall(r"\w+", message.replace("\\n", "\n").partition(" instead of")[0]) or [""]
        if re.match(rf"""[\\"']*{name}[\\"']*(\n|\\n|$)""", message):
            hint = f" Did you mean '{suggestion[-1]}'?" if suggestion else ""
            return f"The configuration has no field '{name}'.{hint} configs/base.py lists all of them."
    if "has no attribute 'get_config'" in message:
        return f"The file of --config has no function get_config(); see configs/base.py.\n{usage}"
    override = re.match(r"flag --config\.([\w.]+)=", message)
    if override and (expected := describe_field(override[1])):
        value = message[override.end() :].partition(": ")[0]
        return f"config.{override[1]} is {reprlib.repr(value)}; {expected}.\n{usage}"
    # ml_collections includes the traceback of a configuration file; its last line is the error.
    last_line = message.splitlines()[-1].strip() if "Traceback" in message else message
    return f"{last_line or type(error).__name__}\n{usage}"


def path_flag(text: str) -> Path:
    """An argparse type: a path, in which ~ is the home folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("expected a path")
    return Path(expand_home(text))


def parse_flags(arguments: Sequence[str]) -> None:
    """Parses a command line with absl. Raises flags.Error for a flag that is unknown, and for what is no flag."""
    rest = flags.FLAGS(expand_flags(arguments))[1:]
    if rest:
        raise flags.Error(f"{rest[0]}: unexpected argument; only flags are accepted.")


def expand_flags(arguments: Sequence[str]) -> list[str]:
    """Replaces the ~ of paths on a command line that absl parses, where no other value begins with it."""
    path = re.compile(r"(^(?:--?[\w.]+=)?|,)(~[^,]*)")
    return [path.sub(lambda match: match[1] + expand_home(match[2]), argument) for argument in arguments]


def lock(file: IO[bytes] | int, folder: Path) -> None:
    """Locks an open file until it is closed, at the latest when this process dies.

    Args:
      file: in the folder; or its descriptor.
      folder: for the message.

    Raises:
      UserError: another process has locked it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"Another process is writing to {folder}. Wait for it, or stop it.") from error
    except OSError:
        pass  # a file system without locks


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, for a file or a folder to be written.

    On success it is moved to `path`, where it replaces what was there; on an error it is deleted, and what was there
    stays.
    """
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the number of the process, which is the same in many containers.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield unfinished
        if path.is_dir():  # os.replace can't replace a folder that is not empty
            _replace_folder(unfinished, path)
        else:
            os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error says more
            _remove(unfinished)
        raise


def _replace_folder(new: Path, path: Path) -> None:
    """Moves a file or folder to the path of a folder. If that fails, the old folder is back at its path."""
    old = new.with_name(f"{new.name}.old")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    """Deletes a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unfinished_files(folder: Path, name: str) -> list[Path]:
    """The temporary files that `atomic_write` left behind when it was killed; no links.

    Args:
      folder: where they are.
      name: of the files that were being written, as a regular expression.
    """
    found = (path for path in folder.glob(".*") if re.fullmatch(rf"\.({name})\.[0-9a-f]+", path.name))
    return [path for path in found if path.is_file() and not path.is_symlink()]


def remove_unfinished(folder: Path, name: str) -> None:
    """Deletes `unfinished_files`. No other process may be writing to the folder."""
    for path in unfinished_files(folder, name):
        path.unlink()


def write_json(value: Any, path: Path) -> None:
    """Writes a value as json, completely or not at all."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def read_json_or_none(path: Path, max_bytes: int) -> Any:
    """The content of a json file; None if it is missing, broken or larger than `max_bytes`."""
    try:
        return json.loads(read_limited(path, max_bytes))
    except (OSError, ValueError, RecursionError):
        return None
