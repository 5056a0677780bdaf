"""The time stamps of a stream, which may start anywhere, jump or begin anew, as times from 0 on that increase."""

from __future__ import annotations

import math


class Timeline:
    """Places frames, or pieces of sound, one after the other. All times are in the unit of the stream.

    Time stamps are kept but for a constant offset, so frames may be any distance apart. Where they begin anew, as in
    joined recordings, and where they jump ahead, what follows is placed directly after what came before.

    Args:
      step: the usual duration of a frame, at least 1.
      longest_gap: a longer gap between time stamps counts as a jump. A frame whose own duration is longer leaves no
        gap.
      latest_start: the first frame may be shown this late; if its time stamp is later or negative, it is shown at 0.

    Attributes:
      start: time of the first frame.
      end: of the last frame.
      jumps: how many there were.
    """

    def __init__(self, step: int, longest_gap: float = math.inf, latest_start: float = 0) -> None:
        self.start = self.end = self.jumps = 0
        self._step, self._longest_gap, self._latest_start = step, longest_gap, latest_start
        self._offset, self._last = 0, -1

    def place(self, pts: int | None, duration: int | None = None, gap: bool = False) -> int:
        """Returns the time of the next frame.

        Args:
          pts: its time stamp; None means that it has none, and follows the last frame.
          duration: of the frame; None or 0 means that it is unknown.
          gap: frames before it are missing, so that a jump ahead is none.
        """
        if pts is None:
            time = self.end
        elif self._last < 0:
            self._offset = 0 if 0 <= pts <= self._latest_start else -pts
            self.start = time = pts + self._offset
        else:
            time = pts + self._offset
            # Damaged time stamps of single frames go back by less: the frames are nudged.
            begins_anew = self._last - time >= 4 * self._step
            if begins_anew or (time - self.end > self._longest_gap and not gap):
                self.jumps += 1
                self._offset, time = self.end - pts, self.end
        self._last = time = max(time, self._last + 1)
        self.end = time + (duration or self._step)
        return time
