"""Decodes a video stream: whole frames only, at times without jumps, going on after damaged parts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from lbdt_jax.inference.container import (
    fraction,
    has_discontinuities,
    header_end,
    open_container,
    read_packets,
)
from lbdt_jax.inference.timeline import Timeline

_LONGEST_GAP = 3600  # seconds without a frame and without sound; a longer one is a jump of the time stamps
_LONGEST_GAP_IN_STREAMS = 10  # in formats where jumps are usual
_LONGEST_DELAY = 16  # frames that a decoder may hold back
_LISTED = 10  # damaged places, in a message


class Decoder:
    """Decodes a video stream, and goes on with the next whole frame after a damaged part.

    A frame that refers to a damaged one shows its damage, so that all frames up to the next key frame are left out. If
    no key frame follows in the whole file, those that FFmpeg takes for whole are used.

    Args:
      path: of the video.
      index: of the stream in the file.
      rate: frames per second, for frames without a duration.
      time_base: of the stream, in seconds.
      max_pixels: of a frame; larger ones count as damaged, and no memory is taken for them.

    Attributes:
      origin: time stamp, in seconds, that became time 0; None if that is unknown.
      start: time of the first frame, whole or not, in units of time_base.
      end: when the last frame ends, in units of time_base; None unless all frames have been decoded.
    """

    def __init__(self, path: Path, index: int, rate: Fraction, time_base: Fraction, max_pixels: int) -> None:
        self.origin: Fraction | None = None
        self.start = 0
        self.end: int | None = None
        self._path, self._index, self._time_base, self._max_pixels = path, index, time_base, max_pixels
        with open_container(path) as container:
            may_jump = has_discontinuities(container)
            self._header_end = header_end(container, container.streams[index])
            # AVI files have no time stamps; those that FFmpeg makes up are wrong for B-frames, unlike decoding times.
            self._by_dts = container.format.name == "avi"
            codec: Any = container.streams[index].codec_context
            self._first_dts = int(codec.has_b_frames)  # of an AVI file's first frame: B-frames delay it by one
        self._step = max(1, round(1 / rate / time_base))
        # The video of a file may begin a little later than its sound; other time stamps do not start at 0.
        latest_start = 0 if self._by_dts or may_jump else 1 / time_base
        self._longest_gap = float((_LONGEST_GAP_IN_STREAMS if may_jump else _LONGEST_GAP) / time_base)
        self._timeline = Timeline(self._step, self._longest_gap, float(latest_start))
        self._sound_seconds: np.ndarray | None = None  # time stamps of the packets of sound, once they are needed
        self._frames = 0  # yielded
        self._last_pts: int | None = None
        self._damaged_places: list[tuple[int, int | None]] = []  # (end of the frame before, time of the next)
        self._last_key: int | None = None  # number of the last packet with a key frame, once it is needed
        self._restart()

    def _restart(self) -> None:
        self._number = -1  # of the packet that is decoded
        self._packets = 0  # that have a frame to show
        self._left_out = 0  # frames
        self._latest_pts = -math.inf
        self._waiting = False  # for a key frame
        self._suspect_pts: int | None = None  # of the last packet that is not whole
        self._no_key_frame = False  # none follows the last damage
        self._damaged = False  # since the last whole frame
        self._damaged_stamp: int | None = None  # of the first damage since then
        self._last_damaged_stamp: int | None = None

    def __iter__(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yields (time in units of time_base, frame) of the whole frames in display order."""
        for frame in self._whole_frames():
            before = self._timeline.end
            stamp = self._stamp(frame)
            after_damage = self._damaged and not self._precedes(stamp, self._damaged_stamp)
            if after_damage and not self._frames and self._damaged_stamp is not None:
                self._timeline.place(self._first_dts if self._by_dts else self._damaged_stamp)
            time = self._timeline.place(stamp, frame.duration, self._damaged or self._sound_goes_on(frame.pts))
            if after_damage:
                self._damaged_places.append((before, time))
                self._damaged, self._damaged_stamp = False, None
            if frame.pts is not None:
                self._last_pts = frame.pts
                if self.origin is None:
                    self.origin = (frame.pts - time) * self._time_base
            self._frames += 1
            self.start = self._timeline.start
            yield time, frame
        if self._damaged or self._ends_early():
            self._left_out += not self._damaged
            self._damaged_places.append((self._timeline.end, None))
        self.end = self._timeline.end

    def _stamp(self, packet_or_frame: Any) -> int | None:
        """The time stamp by which frames are placed."""
        stamp: int | None = packet_or_frame.dts if self._by_dts else packet_or_frame.pts
        return stamp

    def _precedes(self, stamp: int | None, later: int | None) -> bool:
        """Whether a frame is shown before what FFmpeg read before it gave the frame: it holds frames back."""
        if stamp is None or later is None:
            return False
        return later - _LONGEST_DELAY * self._step <= stamp < later

    def _ends_early(self) -> bool:
        """Whether the last frames are missing: FFmpeg may drop them without an error."""
        comparable = self._last_pts is not None and not self._timeline.jumps and not self._by_dts
        return comparable and self._latest_pts - (self._last_pts or 0) > 0.75 * self._step

    def _sound_goes_on(self, pts: int | None) -> bool:
        """Whether there is sound in most of a long gap before a frame: nothing moved on a screen that was recorded."""
        if pts is None or self._last_pts is None or pts - self._last_pts <= self._longest_gap:
            return False
        if self._sound_seconds is None:
            with open_container(self._path) as container:
                sound: Any = container.streams.best("audio")
                packets = read_packets(container, sound) if sound else ()
                stamps = [packet.pts for packet in packets if packet and packet.pts is not None]
                self._sound_seconds = np.array(stamps, float) * float(fraction(sound.time_base) if sound else 1)
        start, end = float(self._last_pts * self._time_base), float(pts * self._time_base)
        between = self._sound_seconds[(self._sound_seconds > start) & (self._sound_seconds < end)]
        return len(np.unique(between.astype(int))) > (end - start) / 2

    def remarks(self, frames_in_header: int) -> list[str]:
        """What the user should know of the frames decoded so far."""
        remarks = []
        if self._damaged_places:
            remarks.append(self._describe_damage())
        if self._timeline.jumps:
            remarks.append(
                f"{self._path}: time stamps jump or begin anew {self._timeline.jumps} times, as in joined recordings. "
                "What follows a jump is placed right after what comes before it."
            )
        if self.end is not None and self._frames:
            remarks += self._describe_truncation(frames_in_header, self.end)
        return remarks

    def _describe_damage(self) -> str:
        seconds = [
            (float(start * self._time_base), None if end is None else float(end * self._time_base))
            for start, end in self._damaged_places
        ]
        places = [f"{start:.2f} s to " + ("the end" if end is None else f"{end:.2f} s") for start, end in seconds]
        listed = ", ".join(places[:_LISTED]) + (f" and {len(places) - _LISTED} more" if places[_LISTED:] else "")
        # Of those that FFmpeg drops itself there are only the gaps that they leave.
        gaps = sum(round(((end or start) - start) / self._step) for start, end in self._damaged_places)
        left_out = max(self._left_out, gaps)
        frames = f"{left_out} frame{'s' * (left_out > 1)}, broken or based on broken ones"
        message = f"{self._path} is damaged: left out {frames}, from {listed}. All others keep their times."
        if self._no_key_frame and self._damaged_places[-1][1] is not None:
            message += " No key frame follows the last place: what does may show traces of the damage."
        return message

    def _describe_truncation(self, frames_in_header: int, end: int) -> list[str]:
        if frames_in_header:
            # AVI files count frames that only repeat the one before, and some of them one too many.
            packets = max(self._packets, round(end / self._step)) if self._by_dts else self._packets
            if packets + 1 >= frames_in_header:
                return []
            expected, readable = f"{frames_in_header} frames", f"{self._frames}"
        else:
            if self._header_end is None or self._last_pts is None:
                return []
            readable_end = float(max(self._last_pts, end) * self._time_base)
            if self._header_end - readable_end <= 0.1 + 4 * float(self._step * self._time_base):
                return []
            expected, readable = f"{self._header_end:.1f} s", f"{readable_end:.1f} s"
        header = f"{self._path} has {expected} according to its header"
        return [f"{header}, but only {readable} can be read. Is it truncated?"]

    def _whole_frames(self) -> Iterator[av.VideoFrame]:
        decoded = 0
        # With several frames decoded at once, errors come late and take whole frames with them: on the first damage,
        # the stream is decoded once more, one frame at a time.
        for threads in ("AUTO", "SLICE"):
            self._restart()
            for number, frame in enumerate(self._decode(threads)):
                if threads == "AUTO" and (frame is None or frame.is_corrupt):
                    break
                if threads == "AUTO" or (number >= decoded and self._is_whole(frame)):
                    decoded += threads == "AUTO"
                    yield frame
            else:
                # The times of AVI files don't show what is missing at the end; the number of packets is nearly exact.
                if not self._ends_early() and not (self._by_dts and decoded < self._packets):
                    return

    def _decode(self, threads: str) -> Iterator[Any]:
        """Yields the frames that FFmpeg gives; of several at once only up to the first damage, and None there."""
        with open_container(self._path) as container:
            stream: Any = container.streams[self._index]
            stream.thread_type = threads
            stream.codec_context.options = {"max_pixels": str(self._max_pixels)}
            pairs = itertools.pairwise(itertools.chain(read_packets(container, stream), [None, None]))
            for self._number, ((packet, second), (_, third)) in enumerate(itertools.pairwise(pairs)):
                if packet and packet.size and not packet.is_discard:
                    self._packets += 1
                    self._latest_pts = max(self._latest_pts, -math.inf if packet.pts is None else packet.pts)
                try:
                    frames, damaged = (packet.decode(), False) if packet else ([], True)
                except av.FFmpegError:
                    frames, damaged = [], True
                # A part of it or of the next is missing, unless a recording ends here and the next one begins.
                if packet and packet.is_corrupt and not any(later and later.is_keyframe for later in (second, third)):
                    damaged, self._suspect_pts = True, packet.pts
                if damaged and threads == "AUTO":
                    yield None
                    return
                if damaged:
                    self._note_damage(self._stamp(packet) if packet else None)
                yield from frames

    def _is_whole(self, frame: av.VideoFrame) -> bool:
        """Whether a frame shows no damage; counts it if it does."""
        if frame.is_corrupt:
            self._note_damage(self._stamp(frame))
        elif self._waiting and (not frame.key_frame or frame.pts == self._suspect_pts):
            self._left_out += 1
        elif self._no_key_frame and not self._by_dts and self._precedes(frame.pts, self._last_pts):
            self._left_out += 1  # FFmpeg has lost the order of the frames
        else:
            # A key frame that is shown before the damage is whole, and those after the damage don't refer to it alone.
            self._waiting = self._waiting and self._precedes(self._stamp(frame), self._last_damaged_stamp)
            return True
        return False

    def _note_damage(self, stamp: int | None) -> None:
        self._left_out += 1
        self._last_damaged_stamp = stamp
        if not self._damaged:
            self._damaged, self._damaged_stamp = True, stamp
        if self._last_key is None:
            with open_container(self._path) as container:
                packets = read_packets(container, container.streams[self._index])
                keys = (number for number, packet in enumerate(packets) if packet and packet.is_keyframe)
                self._last_key = max(keys, default=0)
        self._waiting = self._number < self._last_key
        self._no_key_frame = not self._waiting
