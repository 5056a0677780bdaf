"""Messages are short, and any terminal shows them (input_pipeline/errors.py)."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from input_pipeline.errors import UserError, exit_on_error, fail, first_few, printable, say


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        ("a red dog\n\tcafé", "utf-8", "a red dog\n\tcafé"),
        ("\x1b]0;title\x07 \r\x9b2J\x7f", "utf-8", r"\x1b]0;title\x07 \r\x9b2J\x7f"),
        ("the \u202egod\u2069\u2028", None, r"the \u202egod\u2069\u2028"),
        ("café 犬", "ascii", r"caf\xe9 \u72ac"),
        ("café 犬", "latin-1", r"café \u72ac"),
        ("\udcff.mp4", None, r"\udcff.mp4"),
    ],
)
def test_any_terminal_shows_it(text: str, encoding: str | None, expected: str) -> None:
    assert printable(text, encoding) == expected


def test_long_lists_are_cut() -> None:
    assert first_few(["a", "b"]) == "a, b"
    assert first_few([*range(200_000)], 3) == "0, 1, 2 and 199,997 more"
    assert len(first_few(["x" * 10**6])) < 200


def test_printing_in_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ascii_terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", ascii_terminal)
    with exit_on_error("Stopped."):
        print("café \x1b[31m")
        say("犬")
    assert sys.stdout is ascii_terminal
    assert ascii_terminal.buffer.getvalue() == b"caf\\xe9 \\x1b[31m\n\\u72ac\n"

    with pytest.raises(SystemExit) as exit_info, exit_on_error("Stopped."):
        raise UserError("a\x1b[2J.mp4 is broken" + 10**6 * "!")
    errors = capsys.readouterr().err
    assert exit_info.value.code == 2 and errors.startswith(r"a\x1b[2J.mp4 is broken") and len(errors) < 30_000


def test_nobody_reads_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `command | head -1`: the work goes on."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with exit_on_error("Stopped."):
            print("lost", flush=True)
            print("lost, too", flush=True)


def test_output_to_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit), exit_on_error("Stopped."):
            print("lost")
    assert "No space left" in capsys.readouterr().err


def test_there_may_be_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with exit_on_error("Stopped."):
        say("lost")
    with pytest.raises(SystemExit):
        fail("lost")
