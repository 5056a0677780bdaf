"""The sound of a clip for the overlay: decoded, placed on the times of the frames and encoded as AAC."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import OutputContainer

from lbdt_jax.inference.container import fraction, has_discontinuities, open_container, read_packets
from lbdt_jax.inference.timeline import Timeline

_RATE = 48_000  # samples per second, in stereo
_FRAME = 1024  # samples that AAC encodes at once
_TOLERANCE = _RATE // 20  # time stamps may differ by this many samples from the sound before it


class Sound:
    """Copies the sound of a video file into another file, as far as that file's frames are written.

    Sound that can't be decoded is silence.

    Args:
      path: of the video.
      origin: when its first frame is shown, as a time stamp in seconds; sound before it is left out.
      output: the new file. It gets an audio stream if the video has one.
    """

    def __init__(self, path: Path, origin: Fraction, output: OutputContainer) -> None:
        self._output, self._origin = output, origin
        self._samples = np.zeros((2, 0), np.float32)  # not yet encoded
        self._position = 0  # in the new stream, of the first of them
        self._stream: Any = None
        with contextlib.ExitStack() as stack:
            container = stack.enter_context(open_container(path))
            source = container.streams.best("audio")
            if source is not None and source.codec_context is not None:
                self._stream = output.add_stream("aac", rate=_RATE)
                self._stream.layout = "stereo"
                self._chunks = _decode(container, source)
                self._stack = stack.pop_all()

    def write_until(self, seconds: float) -> None:
        """Encodes the sound up to a time."""
        if self._stream is None:
            return
        end = round(seconds * _RATE)
        while self._position + self._samples.shape[1] < end and (chunk := next(self._chunks, None)) is not None:
            start, samples = round((chunk[0] - self._origin) * _RATE), chunk[1]
            filled = self._position + self._samples.shape[1]
            if start > end + 60 * _RATE:  # not of this clip
                continue
            tolerance = _TOLERANCE if filled else 0
            if start > filled + tolerance:
                for silence in range(start - filled, 0, -_RATE):
                    self._append(np.zeros((2, min(silence, _RATE)), np.float32), end)
            elif start < filled - tolerance:
                samples = samples[:, filled - start :]
            self._append(samples, end)
        self._append(self._samples[:, :0], end)

    def close(self, seconds: float) -> None:
        """Encodes the sound up to the end of the video."""
        if self._stream is None:
            return
        self.write_until(seconds)
        rest = self._samples[:, : max(0, round(seconds * _RATE) - self._position)]
        if rest.size:
            self._encode(rest)
        self._output.mux(self._stream.encode(None))
        self._stack.close()

    def _append(self, samples: np.ndarray, end: int) -> None:
        """Adds samples, and encodes up to a position: a frame of the video may last for hours."""
        self._samples = np.concatenate([self._samples, samples], axis=1)
        while self._samples.shape[1] >= _FRAME and self._position < end:
            self._encode(self._samples[:, :_FRAME])
            self._samples = self._samples[:, _FRAME:]

    def _encode(self, samples: np.ndarray) -> None:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = _RATE, self._position, Fraction(1, _RATE)
        self._output.mux(self._stream.encode(frame))
        self._position += samples.shape[1]


def _decode(container: Any, stream: Any) -> Iterator[tuple[Fraction, np.ndarray]]:
    """Yields (time stamp in seconds, (2, n) float32 samples), without what can't be decoded."""
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=_RATE)
    time_base = fraction(stream.time_base)
    longest_gap = 10 if has_discontinuities(container) else 60  # seconds, as for frames
    first, timeline = None, Timeline(1, float(longest_gap / time_base))
    for packet in read_packets(container, stream):
        with contextlib.suppress(av.FFmpegError, ValueError):
            for frame in packet.decode() if packet else ():
                if first is None:
                    first = frame.pts or 0
                duration = round(frame.samples / frame.sample_rate / time_base)
                time = (first + timeline.place(frame.pts, duration)) * time_base
                frame.pts = None
                for resampled in resampler.resample(frame):
                    yield time, resampled.to_ndarray()
