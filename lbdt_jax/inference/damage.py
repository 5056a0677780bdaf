"""Damaged parts of a video stream: where they are, and which frames behind them are whole."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from input_pipeline.errors import first_few

_LONGEST_DELAY = 16  # frames that FFmpeg may hold back, since it gives them in display order


class Damage:
    """Follows the damage in a video stream while its packets are decoded one by one.

    A frame that refers to a damaged one shows its damage, so that all frames up to the next key frame are left out. If
    no key frame follows in the whole file, those that FFmpeg takes for whole are used.

    A damaged part begins with `add` and ends with `end_part`, before the next whole frame. Time stamps are those by
    which frames are placed, in units of the stream's time base; None where a packet or frame has none.

    Args:
      frame_duration: in units of the time base.

    Attributes:
      in_part: whether no whole frame has followed the last damage.
      first_stamp: of the part that has not ended: time stamp of its first damage.
    """

    def __init__(self, frame_duration: int) -> None:
        self.in_part = False
        self.first_stamp: int | None = None
        self._frame_duration = frame_duration
        self._left_out = 0  # frames
        self._parts: list[tuple[int, int | None]] = []  # (end of the frame before, time of the next)
        self._last_stamp: int | None = None
        self._waiting = False  # for a key frame
        self._no_key_frame = False  # follows the last damage

    def __bool__(self) -> bool:
        """Whether there are damaged parts that have ended."""
        return bool(self._parts)

    def add(self, stamp: int | None, key_frame_follows: bool) -> None:
        """Notes that a packet or a frame is damaged."""
        self._left_out += 1
        if not self.in_part:
            self.in_part, self.first_stamp = True, stamp
        self._last_stamp = stamp
        self._waiting, self._no_key_frame = key_frame_follows, not key_frame_follows

    def end_part(self, start: int, end: int | None) -> None:
        """Ends a damaged part.

        Args:
          start: when the last frame before it ends.
          end: time of the whole frame that follows; None at the end of the stream.
        """
        self._parts.append((start, end))
        self.in_part, self.first_stamp = False, None

    def is_before_part(self, stamp: int | None) -> bool:
        """Whether a frame that FFmpeg gives after damage is shown before it."""
        return self._precedes(stamp, self.first_stamp)

    def spoils(self, frame: Any, stamp: int | None, is_suspect: bool, previous: int | None) -> bool:
        """Whether a frame must be left out although FFmpeg takes it for whole; counts it if so.

        Args:
          frame: of PyAV.
          stamp: its time stamp.
          is_suspect: a part of its packet may be missing.
          previous: the time stamp of the frame before; None if the order is certain.
        """
        if self._waiting:
            is_spoiled = is_suspect or not frame.key_frame
        else:
            is_spoiled = self._no_key_frame and self._precedes(stamp, previous)  # FFmpeg has lost the order
        if is_spoiled:
            self._left_out += 1
        else:
            # A key frame that is shown before the damage is whole, and those after the damage don't refer to it alone.
            self._waiting = self._waiting and self._precedes(stamp, self._last_stamp)
        return is_spoiled

    def _precedes(self, stamp: int | None, later: int | None) -> bool:
        """Whether a frame is shown before a later one, and no further before it than FFmpeg holds frames back."""
        if stamp is None or later is None:
            return False
        return later - _LONGEST_DELAY * self._frame_duration <= stamp < later

    def describe(self, time_base: Fraction) -> str:
        """Says how many frames were left out, and where: "left out 3 frames, ..., from 0.29 s to 0.42 s."."""
        parts = []
        gaps = 0  # frames; of those that FFmpeg drops itself there are only the gaps that they leave
        for start, end in self._parts:
            gaps += 0 if end is None else round((end - start) / self._frame_duration)
            until = "the end" if end is None else f"{float(end * time_base):.2f} s"
            parts.append(f"{float(start * time_base):.2f} s to {until}")
        left_out = max(self._left_out, gaps)
        frames = f"{left_out} frame{'s' * (left_out > 1)}, broken or based on broken ones"
        message = f"left out {frames}, from {first_few(parts)}. All others keep their times."
        if self._no_key_frame and self._parts[-1][1] is not None:
            message += " No key frame follows the last place: what does may show traces of the damage."
        return message
