"""Decodes a video stream: whole frames only, at times without jumps, going on after damaged parts."""

from __future__ import annotations

import functools
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
from lbdt_jax.inference.damage import Damage
from lbdt_jax.inference.timeline import Timeline

_LONGEST_GAP = 3600  # seconds without a frame and without sound; a longer one is a jump of the time stamps
_LONGEST_GAP_IN_STREAMS = 10  # in formats where jumps are usual


class VideoDecoder:
    """Decodes a video stream, and goes on with the next whole frame after a damaged part, see `Damage`.

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
        self._frame_duration = max(1, round(1 / rate / time_base))
        # The video of a file may begin a little later than its sound; other time stamps do not start at 0.
        latest_start = 0 if self._by_dts or may_jump else 1 / time_base
        self._longest_gap = float((_LONGEST_GAP_IN_STREAMS if may_jump else _LONGEST_GAP) / time_base)
        self._timeline = Timeline(self._frame_duration, self._longest_gap, float(latest_start))
        self._damage = Damage(self._frame_duration)
        self._frames = 0  # yielded
        self._last_pts: int | None = None  # of those

    def __iter__(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yields (time in units of time_base, frame) of the whole frames in display order."""
        damage, timeline = self._damage, self._timeline
        for frame in self._whole_frames():
            stamp, before = self._stamp(frame), timeline.end
            ends_part = damage.in_part and not damage.is_before_part(stamp)
            if ends_part and not self._frames and damage.first_stamp is not None:
                timeline.place(self._first_dts if self._by_dts else damage.first_stamp)
            time = timeline.place(stamp, frame.duration, damage.in_part or self._sound_goes_on(frame.pts))
            if ends_part:
                damage.end_part(before, time)
            if frame.pts is not None:
                self._last_pts = frame.pts
                if self.origin is None:
                    self.origin = (frame.pts - time) * self._time_base
            self._frames += 1
            self.start = timeline.start
            yield time, frame
        if not damage.in_part and self._ends_early():
            damage.add(None, key_frame_follows=False)
        if damage.in_part:
            damage.end_part(timeline.end, None)
        self.end = timeline.end

    def _whole_frames(self) -> Iterator[av.VideoFrame]:
        """Yields the frames that show no damage, in display order."""
        # Several frames are decoded at once until the first damage. Then errors come late, and take whole frames with
        # them: the stream is decoded once more, one frame at a time.
        decoded = 0
        for frame in self._decode("AUTO"):
            if frame is None or frame.is_corrupt:
                break
            decoded += 1
            yield frame
        else:
            # The times of AVI files don't show what is missing at the end; the number of packets is nearly exact.
            if not self._ends_early() and not (self._by_dts and decoded < self._packets):
                return
        number = 0
        for frame in self._decode("SLICE"):
            if frame is None:
                self._add_damage(self._packet)
                continue
            number += 1
            if number > decoded and self._is_whole(frame):
                yield frame

    def _decode(self, threads: str) -> Iterator[av.VideoFrame | None]:
        """Yields the frames that FFmpeg gives, and None for a damaged packet, before the frames that it still gives.

        Args:
          threads: "AUTO" to decode several frames at once, "SLICE" for one at a time.
        """
        self._packets = 0  # that have a frame to show
        self._latest_pts = -math.inf  # of those
        self._suspect_pts: int | None = None  # of the last packet that is not whole
        with open_container(self._path) as container:
            stream: Any = container.streams[self._index]
            stream.thread_type = threads
            stream.codec_context.options = {"max_pixels": str(self._max_pixels)}
            pairs = itertools.pairwise(itertools.chain(read_packets(container, stream), [None, None]))
            for self._number, ((packet, second), (_, third)) in enumerate(itertools.pairwise(pairs)):
                self._packet = packet
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
                if damaged:
                    yield None
                yield from frames

    def _is_whole(self, frame: av.VideoFrame) -> bool:
        if frame.is_corrupt:
            self._add_damage(frame)
            return False
        previous = None if self._by_dts else self._last_pts
        return not self._damage.spoils(frame, self._stamp(frame), frame.pts == self._suspect_pts, previous)

    def _add_damage(self, packet_or_frame: Any) -> None:
        stamp = self._stamp(packet_or_frame) if packet_or_frame else None
        self._damage.add(stamp, key_frame_follows=self._number < self._last_key_packet)

    @functools.cached_property
    def _last_key_packet(self) -> int:
        """Number of the last packet with a key frame."""
        with open_container(self._path) as container:
            packets = read_packets(container, container.streams[self._index])
            return max((number for number, packet in enumerate(packets) if packet and packet.is_keyframe), default=0)

    def _stamp(self, packet_or_frame: Any) -> int | None:
        """The time stamp by which frames are placed."""
        stamp: int | None = packet_or_frame.dts if self._by_dts else packet_or_frame.pts
        return stamp

    def _ends_early(self) -> bool:
        """Whether the last frames are missing: FFmpeg may drop them without an error."""
        comparable = self._last_pts is not None and not self._timeline.jumps and not self._by_dts
        return comparable and self._latest_pts - (self._last_pts or 0) > 0.75 * self._frame_duration

    def _sound_goes_on(self, pts: int | None) -> bool:
        """Whether there is sound in most of a long gap before a frame: nothing moved on a screen that was recorded."""
        if pts is None or self._last_pts is None or pts - self._last_pts <= self._longest_gap:
            return False
        start, end = float(self._last_pts * self._time_base), float(pts * self._time_base)
        between = self._sound_seconds[(self._sound_seconds > start) & (self._sound_seconds < end)]
        return len(np.unique(between.astype(int))) > (end - start) / 2

    @functools.cached_property
    def _sound_seconds(self) -> np.ndarray:
        """Time stamps of the packets of sound, in seconds."""
        with open_container(self._path) as container:
            sound: Any = container.streams.best("audio")
            packets = read_packets(container, sound) if sound else ()
            stamps = [packet.pts for packet in packets if packet and packet.pts is not None]
            return np.array(stamps, float) * float(fraction(sound.time_base) if sound else 1)

    def remarks(self, frames_in_header: int) -> list[str]:
        """What the user should know of the frames decoded so far."""
        remarks = []
        if self._damage:
            remarks.append(f"{self._path} is damaged: {self._damage.describe(self._time_base)}")
        if self._timeline.jumps:
            remarks.append(
                f"{self._path}: time stamps jump or begin anew {self._timeline.jumps} times, as in joined recordings. "
                "What follows a jump is placed right after what comes before it."
            )
        if self.end is not None and self._frames:
            remarks += self._describe_truncation(frames_in_header, self.end)
        return remarks

    def _describe_truncation(self, frames_in_header: int, end: int) -> list[str]:
        if frames_in_header:
            # AVI files count frames that only repeat the one before, and some of them one too many.
            packets = max(self._packets, round(end / self._frame_duration)) if self._by_dts else self._packets
            if packets + 1 >= frames_in_header:
                return []
            expected, readable = f"{frames_in_header} frames", f"{self._frames}"
        else:
            if self._header_end is None or self._last_pts is None:
                return []
            readable_end = float(max(self._last_pts, end) * self._time_base)
            if self._header_end - readable_end <= 0.1 + 4 * float(self._frame_duration * self._time_base):
                return []
            expected, readable = f"{self._header_end:.1f} s", f"{readable_end:.1f} s"
        header = f"{self._path} has {expected} according to its header"
        return [f"{header}, but only {readable} can be read. Is it truncated?"]
